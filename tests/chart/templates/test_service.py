"""templates/service.yaml."""

from __future__ import annotations

from tests.chart.rendering import render, the


def test_load_balancers_are_told_the_protocols() -> None:
    """gRPC needs it: without, a balancer takes one connection for one request."""
    ports = the(render({"router": {"service": {"appProtocol": "kubernetes.io/h2c", "grpcPort": 9000}}}), "Service",
                "-shoal")["spec"]["ports"]  # fmt: skip
    assert [(9000, "kubernetes.io/h2c"), (8000, "http")] == [(p["port"], p["appProtocol"]) for p in ports]


def test_every_router_has_an_address_of_its_own() -> None:
    """For clients that balance by themselves."""
    assert "None" == the(render(), "Service", "-routers")["spec"]["clusterIP"]


def test_an_external_redis_needs_no_service() -> None:
    """Only the bundled one has one."""
    values = {"redis": {"mode": "external", "existingSecret": "r", "external": {"address": "redis.example:6379"}}}
    names = {m["metadata"]["name"] for m in render(values) if m["kind"] == "Service"}
    assert {"fish-shoal", "fish-shoal-routers"} == names


def test_encryption_is_told_too() -> None:
    """What is in front speaks TLS to its backend then."""
    tls = {"enabled": True, "existingSecret": "a", "internalSecret": "b"}
    ports = {p["name"]: p for p in the(render({"tls": tls}), "Service", "-shoal")["spec"]["ports"]}
    assert "https" == ports["http"]["appProtocol"]

"""templates/grpcroute.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the

GATEWAY = {"enabled": True, "parentRefs": [{"name": "front", "namespace": "infra"}],
           "grpcHostnames": ["g.example"], "httpHostnames": ["h.example"]}  # fmt: skip
VALUES = {"gateway": GATEWAY, "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"name": "infra"}}}]}}


def test_the_gateways_are_asked_to_route_to_the_service() -> None:
    """To its grpc port, for the host names that were given."""
    spec = the(render(VALUES), "GRPCRoute")["spec"]
    assert [{"name": "front", "namespace": "infra"}] == spec["parentRefs"]
    assert ["g.example"] == spec["hostnames"]
    assert [{"name": "fish-shoal", "port": 50051}] == spec["rules"][0]["backendRefs"]


def test_there_is_none_unless_asked_for() -> None:
    """The Gateway API is not in every cluster."""
    assert "GRPCRoute" not in kinds(render())

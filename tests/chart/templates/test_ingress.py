"""templates/ingress.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the

OPEN = {"networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]}}


def test_only_the_api_is_published() -> None:
    """Neither metrics nor probes: they stay inside the cluster."""
    spec = the(render({"ingress": {"enabled": True, "host": "*.fish.example"}} | OPEN), "Ingress")["spec"]
    assert "*.fish.example" == spec["rules"][0]["host"]
    assert ["/v1"] == [path["path"] for path in spec["rules"][0]["http"]["paths"]]


def test_there_is_none_unless_asked_for() -> None:
    """A service that only the cluster reaches is the default."""
    assert "Ingress" not in kinds(render())


def test_a_certificate_is_named() -> None:
    """For the same host."""
    values = {"ingress": {"enabled": True, "host": "fish.example", "tlsSecret": "cert"}}
    assert [{"secretName": "cert", "hosts": ["fish.example"]}] == the(render(values | OPEN), "Ingress")["spec"]["tls"]

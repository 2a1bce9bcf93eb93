"""templates/certificate.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the

TLS = {"enabled": True, "certManager": {"enabled": True, "issuerName": "ca", "issuerKind": "ClusterIssuer"}}


def test_routers_are_certified_by_the_names_that_clients_call() -> None:
    """In and across namespaces."""
    spec = the(render({"tls": TLS}), "Certificate", "-tls")["spec"]
    assert {"fish-shoal", "fish-shoal.sea", "fish-shoal.sea.svc", "fish-shoal.sea.svc.cluster.local"} == set(
        spec["dnsNames"]
    )
    assert {"kind": "ClusterIssuer", "name": "ca"} == spec["issuerRef"]


def test_workers_are_certified_by_the_name_that_the_product_asks_for() -> None:
    """Their addresses change; the name does not."""
    from shoal.wire.tls import INTERNAL_NAME

    assert [INTERNAL_NAME] == the(render({"tls": TLS}), "Certificate", "-internal")["spec"]["dnsNames"]


def test_there_is_none_unless_asked_for() -> None:
    """Secrets of yours serve as well."""
    assert "Certificate" not in kinds(render({"tls": {"enabled": True, "existingSecret": "a", "internalSecret": "b"}}))

"""templates/certificate.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the

TLS = {"enabled": True, "certManager": {"enabled": True, "issuerName": "ca", "issuerKind": "ClusterIssuer"}}


def test_routers_are_certified_by_the_names_that_clients_call() -> None:
    """In and across namespaces, through the service or to each router."""
    spec = the(render({"tls": TLS}), "Certificate", "-tls")["spec"]
    names = {f"{name}{end}" for name in ("fish-shoal", "fish-shoal-routers")
             for end in ("", ".sea", ".sea.svc", ".sea.svc.cluster.local")}  # fmt: skip
    assert names == set(spec["dnsNames"])
    assert {"kind": "ClusterIssuer", "name": "ca"} == spec["issuerRef"]


def test_workers_are_certified_by_the_name_that_the_product_asks_for() -> None:
    """Their addresses change; the name does not."""
    from shoal.wire.tls import INTERNAL_NAME

    assert [INTERNAL_NAME] == the(render({"tls": TLS}), "Certificate", "-internal")["spec"]["dnsNames"]


def test_there_is_none_unless_asked_for() -> None:
    """Secrets of yours serve as well."""
    assert "Certificate" not in kinds(render({"tls": {"enabled": True, "existingSecret": "a", "internalSecret": "b"}}))

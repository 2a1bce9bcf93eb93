"""templates/serviceaccount.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, pod_templates, render


def test_every_role_has_one_without_a_token() -> None:
    """Nothing calls the Kubernetes API."""
    made = [m for m in render() if m["kind"] == "ServiceAccount"]
    names = {f"fish-shoal-{role}" for role in ("router", "ray", "test", "redis")}
    assert names == {m["metadata"]["name"] for m in made}
    assert {False} == {m["automountServiceAccountToken"] for m in made}


def test_one_of_yours_serves_all() -> None:
    """And then none is made."""
    manifests = render({"serviceAccount": {"create": False, "name": "mine"}})
    assert "ServiceAccount" not in kinds(manifests)
    assert {"mine"} == {t["spec"]["serviceAccountName"] for m in manifests for _, t in pod_templates(m)}

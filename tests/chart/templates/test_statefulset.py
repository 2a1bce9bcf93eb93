"""templates/statefulset.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_the_bundled_redis_keeps_its_data_and_evicts_nothing() -> None:
    """On a volume of its own, with a bound on its memory."""
    spec = the(render({"redis": {"bundled": {"maxMemoryMiB": 99, "size": "3Gi"}}}), "StatefulSet")["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert ["shoal", "redis"] == container["command"]
    assert {"--max-memory-mib=99", "--data=/data"} <= set(container["args"])
    assert "3Gi" == spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]


def test_an_external_redis_replaces_it() -> None:
    """Nothing of the bundled one is left."""
    values = {"redis": {"mode": "external", "existingSecret": "r", "external": {"address": "redis.example:6379"}}}
    assert not {"StatefulSet", "Secret"} & kinds(render(values))

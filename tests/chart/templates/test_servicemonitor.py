"""templates/servicemonitor.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_routers_are_scraped_each_by_itself() -> None:
    """On the metrics port, as often as was said, with the labels that your Prometheus wants."""
    values = {"metrics": {"serviceMonitor": {"enabled": True, "interval": "7s", "labels": {"release": "prom"}}},
              "networkPolicy": {"prometheus": [{"podSelector": {}}]}}  # fmt: skip
    made = the(render(values), "ServiceMonitor")
    [endpoint] = made["spec"]["endpoints"]
    assert ("metrics", "7s") == (endpoint["port"], endpoint["interval"])
    told = {r["targetLabel"]: r["replacement"] for r in endpoint["relabelings"]}
    assert {"shoal_role": "router", "shoal_release": "sea/fish-shoal"} == told  # alerts and dashboards ask for them
    assert "prom" == made["metadata"]["labels"]["release"]


def test_there_is_none_unless_asked_for() -> None:
    """Its kind exists only with the operator."""
    assert not {"ServiceMonitor", "PodMonitor"} & kinds(render())

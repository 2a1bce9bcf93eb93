"""templates/podmonitor.yaml."""

from __future__ import annotations

from tests.chart.rendering import render, the


def test_every_rank_of_a_pod_is_scraped() -> None:
    """Each has a port of its own."""
    values = {"metrics": {"serviceMonitor": {"enabled": True}}, "expertParallel": {"size": 4},
              "worker": {"ranksPerPod": 4}, "networkPolicy": {"prometheus": [{"podSelector": {}}]}}  # fmt: skip
    endpoints = the(render(values), "PodMonitor")["spec"]["podMetricsEndpoints"]
    ports = [e["port"] for e in endpoints]
    for endpoint in endpoints:
        told = {r["targetLabel"]: r["replacement"] for r in endpoint["relabelings"]}
        assert {"shoal_role": "worker", "shoal_release": "sea/fish-shoal"} == told
    assert ["metrics-0", "metrics-1", "metrics-2", "metrics-3"] == ports

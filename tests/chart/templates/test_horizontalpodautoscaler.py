"""templates/horizontalpodautoscaler.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_routers_scale_by_what_they_have_in_hand() -> None:
    """Tokens in flight and the wait for room, by the names that routers export."""
    values = {"router": {"autoscaling": {"enabled": True, "tokensInFlight": 1000, "queueMilliseconds": 250}}}
    spec = the(render(values), "HorizontalPodAutoscaler")["spec"]
    targets = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in spec["metrics"]}
    assert {"shoal_router_tokens_in_flight": "1000", "shoal_router_queue_oldest_seconds": "250m"} == targets


def test_there_is_none_unless_asked_for() -> None:
    """Custom metrics need an adapter that not every cluster has."""
    assert "HorizontalPodAutoscaler" not in kinds(render())

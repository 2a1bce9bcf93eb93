"""templates/poddisruptionbudget.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_routers_are_evicted_one_at_a_time() -> None:
    """However many there are."""
    assert 1 == the(render(), "PodDisruptionBudget", "-router")["spec"]["maxUnavailable"]


def test_workers_have_a_budget_that_kubernetes_can_compute() -> None:
    """Their owner, a RayCluster, has no scale subresource: only a number that must stay is understood there."""
    spec = the(render({"worker": {"disruptionBudget": {"minAvailable": 3}}}), "PodDisruptionBudget", "-worker")["spec"]
    assert 3 == spec["minAvailable"]
    assert "maxUnavailable" not in spec


def test_they_can_be_left_out() -> None:
    """Some clusters forbid them."""
    off = {"disruptionBudget": {"enabled": False}}
    assert "PodDisruptionBudget" not in kinds(render({"router": off, "worker": off}))

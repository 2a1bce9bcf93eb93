"""templates/poddisruptionbudget.yaml."""

from __future__ import annotations

from tests.chart.rendering import kinds, render, the


def test_one_at_a_time() -> None:
    """Routers and workers are evicted one by one."""
    for role in ("router", "worker"):
        assert 1 == the(render(), "PodDisruptionBudget", f"-{role}")["spec"]["maxUnavailable"]


def test_it_can_be_left_out() -> None:
    """Some clusters forbid them."""
    assert "PodDisruptionBudget" not in kinds(render({"router": {"disruptionBudget": {"enabled": False}}}))

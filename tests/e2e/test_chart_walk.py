"""The chart's rendered commands, walked through as separate processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.expressions import exported, wanted
from tests.e2e.namespace import in_a_network_of_its_own, needs_the_tools
from tests.e2e.rendered import PATIENCE

pytestmark = needs_the_tools


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Iterator[dict[str, Any]]:
    """What the walk saw."""
    with in_a_network_of_its_own("tests.e2e.walk", tiny_model, 4 * PATIENCE) as told:
        yield told


def test_helm_test_passes_against_the_rendered_entry_points(seen: dict[str, Any]) -> None:
    """Redis, head with its start hook, worker and router as rendered: one real chat over gRPC."""
    assert 0 == seen["helm_test"]


def test_every_metric_that_is_asked_for_is_in_the_scrape_of_the_cluster(seen: dict[str, Any]) -> None:
    """By dashboards, alerts and autoscalers."""
    there = exported(seen["scrape"])
    assert {} == {name: sorted(where) for name, where in wanted().items() if name not in there}
    assert "shoal_router_output_tokens_total 0.0" not in seen["scrape"]


def test_the_scrape_tells_what_really_happened(seen: dict[str, Any]) -> None:
    """The parts of a step, bytes that ranks sent each other and their wait, loads: none of them is only a name."""
    samples = [line for line in seen["scrape"].splitlines() if not line.startswith("#")]

    def total(name: str, label: str = "") -> float:
        return sum(float(line.rpartition(" ")[2]) for line in samples if line.startswith(name) and label in line)

    for phase in ("schedule", "attention", "exchange", "experts", "sampling"):
        assert total("shoal_worker_step_seconds_total{", f'phase="{phase}"') > 0, phase
    for name in ("exchange_sent_bytes", "exchange_wait_seconds", "expert_tokens", "generated_tokens", "steps"):
        assert total(f"shoal_worker_{name}_total{{") > 0, name
    assert 1 == total("gen_ai_server_time_to_first_token_seconds_count")


def test_a_trace_goes_through_router_and_worker_to_the_steps(seen: dict[str, Any]) -> None:
    """To the collector that the chart names: one span below the other, and an event for each step with a token."""
    router, worker = seen["trace"]["shoal-router"], seen["trace"]["shoal-worker"]
    assert router["span"] == worker["parent"]
    assert {"step"} == set(worker["events"])


def test_the_controller_follows_the_desired_size(seen: dict[str, Any]) -> None:
    """What `helm upgrade` writes scales the running cluster, and it answers on."""
    assert 0 == seen["chat_after_scaling"]


def test_the_hooks_of_the_end_work(seen: dict[str, Any]) -> None:
    """preStop drains the idle ranks at once; SIGTERM ends the router well."""
    assert (0, 0) == (seen["drain"], seen["router_exit"])


def test_the_state_of_the_cluster_is_told_in_a_router_s_pod(seen: dict[str, Any]) -> None:
    """Without an option: `kubectl exec deployment/shoal-router -- shoal status`."""
    assert seen["status"]["healthy"]
    assert [2] == [len(group["workers"]) for group in seen["status"]["groups"]]


def test_workers_and_the_controller_are_heard_in_the_logs_of_their_pods(seen: dict[str, Any]) -> None:
    """One JSON object per line, where `kubectl logs` and collectors look."""
    assert ["controller", "worker"] == seen["roles_heard"]

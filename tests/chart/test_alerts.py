"""Each fault fires exactly its alert, in Prometheus' own rule tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, render, the
from tests.chart.tools import tool

RULES = CHART / "files" / "alerts.yaml"
ALERTS = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
MINUTES = 40

HEALTHY = {
    'up{shoal_role="router", instance="r0"}': f"1x{MINUTES}",
    'up{shoal_role="router", instance="r1"}': f"1x{MINUTES}",
    **{f'up{{shoal_role="worker", instance="w{rank}"}}': f"1x{MINUTES}" for rank in range(4)},
    "shoal_router_workers_known": f"4x{MINUTES}",
    "shoal_router_workers_connected": f"4x{MINUTES}",
    "shoal_router_workers_ready": f"4x{MINUTES}",
    "shoal_router_registry_age_seconds": f"0.4x{MINUTES}",
    'shoal_router_requests_total{method="Chat", code="OK"}': f"0+600x{MINUTES}",
    'shoal_router_requests_total{method="Chat", code="INTERNAL"}': f"0x{MINUTES}",
    'shoal_router_rejections_total{reason="queue_full"}': f"0x{MINUTES}",
    **{
        f'shoal_worker_state{{group="g0", rank="{rank}", state="{state}"}}': f"{int(state == 'serving')}x{MINUTES}"
        for rank in range(4)
        for state in ("serving", "broken", "unfit")
    },
    **{
        f'shoal_worker_expert_tokens_total{{group="g0", rank="{rank}", layer="0", expert="{rank}"}}':
        f"0+600x{MINUTES}"
        for rank in range(4)
    },
    'shoal_worker_kv_blocks{group="g0", rank="0", layers="full"}': f"100x{MINUTES}",
    'shoal_worker_kv_blocks_used{group="g0", rank="0", layers="full"}': f"60x{MINUTES}",
}  # fmt: skip
"""Two routers, one group of four ranks, everything well."""

FAULTS: dict[str, tuple[str, dict[str, str]]] = {
    "nothing": ("", {}),
    "a worker dies": ("ShoalWorkerDown", {
        "shoal_router_workers_connected": f"4x5 3x{MINUTES}", "shoal_router_workers_ready": f"4x5 3x{MINUTES}"}),
    "a rank does not come back": ("ShoalRankMissing", {
        'up{shoal_role="worker", instance="w3"}': f"1x5 0x{MINUTES}"}),
    "no router is there any more": ("ShoalNothingServes", {
        series: values.replace(f"x{MINUTES}", "x5") + f" stale _x{MINUTES}"
        for series, values in HEALTHY.items() if "router" in series}),
    "a rank hangs": ("ShoalRankBroken", {
        'shoal_worker_state{group="g0", rank="2", state="serving"}': f"1x5 0x{MINUTES}",
        'shoal_worker_state{group="g0", rank="2", state="broken"}': f"0x5 1x{MINUTES}"}),
    "wrong logits": ("ShoalWrongLogits", {
        'shoal_worker_state{group="g0", rank="1", state="serving"}': f"1x5 0x{MINUTES}",
        'shoal_worker_state{group="g0", rank="1", state="unfit"}': f"0x5 1x{MINUTES}"}),
    "Redis is away": ("ShoalRedisAway", {"shoal_router_registry_age_seconds": f"0.4x5 30+60x{MINUTES}"}),
    "a router dies": ("ShoalRouterDown", {'up{shoal_role="router", instance="r1"}': f"1x5 0x{MINUTES}"}),
    "overload": ("ShoalOverload", {'shoal_router_rejections_total{reason="queue_full"}': f"0x5 0+100x{MINUTES}"}),
    "imbalance": ("ShoalExpertImbalance", {
        'shoal_worker_expert_tokens_total{group="g0", rank="3", layer="0", expert="3"}': f"0+2400x{MINUTES}"}),
    "no worker is ready": ("ShoalNothingServes", {"shoal_router_workers_ready": f"4x5 0x{MINUTES}"}),
    "the KV cache is full": ("ShoalKvFull", {
        'shoal_worker_kv_blocks_used{group="g0", rank="0", layers="full"}': f"60x5 99x{MINUTES}"}),
    "a mistake of ours": ("ShoalInternalErrors", {
        'shoal_router_requests_total{method="Chat", code="INTERNAL"}': f"0x5 0+10x{MINUTES}"}),
}  # fmt: skip
"""What happens -> the one alert that must fire, and what changes."""


def rule_test(name: str) -> dict[str, Any]:
    """One case as promtool reads it: every alert is asked for, and only the fault's own may fire."""
    expected, changed = FAULTS[name]
    assert set(changed) <= set(HEALTHY), set(changed) - set(HEALTHY)
    series = [{"series": key, "values": values} for key, values in (HEALTHY | changed).items()]
    # What a firing alert says is compared too by promtool; here its count is: ALERTS is a series of its own.
    counted = [
        {
            "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
            "eval_time": f"{MINUTES - 5}m",
            "exp_samples": [{"labels": "{}", "value": int(alert == expected)}],
        }
        for alert in ALERTS
    ]
    return {"name": name, "interval": "1m", "input_series": series, "promql_expr_test": counted}


def promtool(*arguments: str) -> str:
    """Its output, when it is content."""
    done = subprocess.run([str(tool("promtool")), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules() -> None:
    """`promtool check rules`."""
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fires_exactly_its_alert(fault: str, tmp_path: Path) -> None:
    """And nothing else; with nothing wrong none fires."""
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump({
        "rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [rule_test(fault)],
    }))  # fmt: skip
    assert "SUCCESS" in promtool("test", "rules", str(cases))


def test_every_alert_has_its_fault() -> None:
    """None is untested."""
    assert set(ALERTS) == {alert for alert, _ in FAULTS.values() if alert}


def test_a_release_that_is_well_does_not_hide_another() -> None:
    """Two of them in one Prometheus: whatever is compared or added up is so within a release."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            grouped = re.findall(r"\b(?:max|min|sum|avg|count)\b(?: by \(([^)]*)\))?", rule["expr"])
            assert [] == [labels for labels in grouped if "shoal_release" not in labels], rule["alert"]


def test_each_release_s_rules_are_about_itself() -> None:
    """`absent` would not tell which one is away."""
    rules = the(render({"metrics": {"prometheusRule": {"enabled": True}}}), "PrometheusRule")["spec"]["groups"][0][
        "rules"
    ]
    [expr] = [rule["expr"] for rule in rules if rule["alert"] == "ShoalNothingServes"]
    assert 'absent(up{shoal_role="router", shoal_release="sea/fish-shoal"})' in expr

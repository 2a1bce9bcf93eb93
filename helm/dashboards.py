"""Build the Grafana dashboards of the chart.

python helm/dashboards.py            write helm/shoal/files/dashboards/*.json
python helm/dashboards.py --check    fail when one of them is not what would be written
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "shoal" / "files" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH = 24  # of Grafana's grid


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: queries as (expression, legend)."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    """timeseries, stat, heatmap or bargauge."""
    words: str = ""
    width: int = 8
    options: dict[str, Any] = field(default_factory=dict)

    def built(self, number: int, x: int, y: int) -> dict[str, Any]:
        """As Grafana reads it, at a place of the grid."""
        instant = self.kind in ("stat", "bargauge")
        form = "heatmap" if self.kind == "heatmap" else "time_series"
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.words,
            "datasource": SOURCE,
            "gridPos": {"h": 8, "w": self.width, "x": x, "y": y},
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "options": self.options,
            "targets": [
                {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": chosen(expr), "legendFormat": legend,
                 "format": form, "instant": instant, "range": not instant}
                for i, (expr, legend) in enumerate(self.queries)
            ],
        }  # fmt: skip


def chosen(expression: str) -> str:
    """Of the releases that were chosen alone.

    >>> chosen("sum(rate(shoal_a_total[5m])) / max(gen_ai_b)")
    'sum(rate(shoal_a_total{shoal_release=~"$release"}[5m])) / max(gen_ai_b{shoal_release=~"$release"})'
    """
    return re.sub(r"\b((?:shoal|gen_ai)_\w+)", r'\1{shoal_release=~"$release"}', expression)


def quantiles(histogram: str, by: str = "") -> list[tuple[str, str]]:
    """Median, 90th and 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return [
        (f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket[$__rate_interval])))", f"p{q[2:]:0<2}")
        for q in ("0.5", "0.9", "0.99")
    ]


def rate(counter: str, by: str = "") -> str:
    """Per second, summed."""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}[$__rate_interval]))"


SERVICE = [
    Panel("Requests", [(rate("shoal_router_requests_total", "code"), "{{code}}")], "reqps"),
    Panel("Refused, by reason", [(rate("shoal_router_rejections_total", "reason"), "{{reason}}")], "reqps"),
    Panel("In hand", [("sum(shoal_router_requests_in_flight)", "running"), ("sum(shoal_router_requests_queued)",
          "waiting")], words="Requests that routers serve, and that wait for room."),
    Panel("Time to first token", quantiles("gen_ai_server_time_to_first_token_seconds"), "s"),
    Panel("Time per output token", quantiles("gen_ai_server_time_per_output_token_seconds"), "s"),
    Panel("Request duration", quantiles("gen_ai_server_request_duration_seconds"), "s"),
    Panel("Queue time", [*quantiles("shoal_router_queue_seconds"), ("max(shoal_router_queue_oldest_seconds)",
          "waiting now")], "s"),
    Panel("Tokens", [(rate("shoal_router_input_tokens_total"), "in"), (rate("shoal_router_output_tokens_total"), "out"),
          (rate("shoal_router_reasoning_tokens_total"), "of those reasoning"),
          (rate("shoal_router_cached_tokens_total"), "in, from a cache")]),
    Panel("Tokens in flight", [("sum(shoal_router_tokens_in_flight)", "tokens")],
          words="What routers scale by, with the queue time."),
    Panel("Workers", [("max(shoal_router_workers_known)", "known"), ("max(shoal_router_workers_connected)",
          "connected"), ("max(shoal_router_workers_ready)", "ready")]),
    Panel("Migrations", [(rate("shoal_router_migrations_total", "reason"), "{{reason}}")], "ops"),
    Panel("Pause of a migration", quantiles("shoal_router_migration_pause_seconds"), "s"),
]  # fmt: skip

ENGINE = [
    Panel("Tokens generated", [(rate("shoal_worker_generated_tokens_total", "group, rank"), "{{group}}/{{rank}}")]),
    Panel("Prompt tokens", [(rate("shoal_worker_prompt_tokens_total"), "computed"),
          (rate("shoal_worker_prompt_cached_tokens_total"), "from the prefix cache")]),
    Panel("Prefix hit rate", [("sum(rate(shoal_worker_prompt_cached_tokens_total[$__rate_interval])) / "
          "(sum(rate(shoal_worker_prompt_cached_tokens_total[$__rate_interval])) + "
          "sum(rate(shoal_worker_prompt_tokens_total[$__rate_interval])))", "share")], "percentunit"),
    Panel("Sequences", [("sum by (group) (shoal_worker_sequences_running)", "{{group}} running"),
          ("sum by (group) (shoal_worker_sequences_waiting)", "{{group}} waiting")]),
    Panel("KV in use", [("shoal_worker_kv_blocks_used / shoal_worker_kv_blocks", "{{group}}/{{rank}} {{layers}}")],
          "percentunit", words="By kind of layer: full attention keeps everything, sliding ones their window."),
    Panel("KV cache", [("sum by (group) (shoal_worker_kv_bytes)", "{{group}}")], "bytes"),
    Panel("Where a step's time goes", [(rate("shoal_worker_step_seconds_total", "phase"), "{{phase}}")], "s",
          words="Seconds per second, over all ranks."),
    Panel("Steps", [(rate("shoal_worker_steps_total", "group"), "{{group}}")], "ops"),
    Panel("Preemptions", [(rate("shoal_worker_preemptions_total", "group, rank"), "{{group}}/{{rank}}")], "ops"),
    Panel("Guesses ahead", [(rate("shoal_worker_drafted_tokens_total"), "made"),
          (rate("shoal_worker_draft_accepted_tokens_total"), "right")]),
]  # fmt: skip

EXPERTS = [
    Panel("Epoch", [("max by (group) (shoal_worker_epoch)", "{{group}}")], kind="stat"),
    Panel("Ready", [("shoal_worker_ready", "{{group}}/{{rank}}")], kind="stat"),
    Panel("State", [("shoal_worker_state == 1", "{{group}}/{{rank}} {{state}}")]),
    Panel("Load of the experts", [("sum by (expert) (increase(shoal_worker_expert_tokens_total[$__rate_interval]))",
          "{{expert}}")], kind="heatmap", width=WIDTH,
          words="Tokens per expert over all layers: an even colour is an even load."),
    Panel("Load of the ranks", [(rate("shoal_worker_expert_tokens_total", "group, rank"), "{{group}}/{{rank}}")]),
    Panel("Imbalance", [("max by (group) (sum by (group, rank) (rate(shoal_worker_expert_tokens_total"
          "[$__rate_interval]))) / avg by (group) (sum by (group, rank) (rate(shoal_worker_expert_tokens_total"
          "[$__rate_interval])))", "{{group}}")], words="The busiest rank over the mean: 1 is perfect."),
    Panel("Hottest experts", [("topk(10, sum by (layer, expert) (rate(shoal_worker_expert_tokens_total[5m])))",
          "layer {{layer}} expert {{expert}}")], kind="bargauge"),
    Panel("Exchange", [(rate("shoal_worker_exchange_sent_bytes_total", "group, rank"), "{{group}}/{{rank}}")], "Bps"),
    Panel("Waiting for stragglers", [(rate("shoal_worker_exchange_wait_seconds_total", "group, rank"),
          "{{group}}/{{rank}}")], "percentunit", words="Who waits least is whom the others wait for."),
]  # fmt: skip

SESSIONS = [
    Panel("Session store", quantiles("shoal_router_session_store_seconds"), "s"),
    Panel("Calls of the session store", [(rate("shoal_router_session_store_seconds_count", "operation, outcome"),
          "{{operation}} {{outcome}}")], "ops"),
    Panel("Age of the registry", [("max(shoal_router_registry_age_seconds)", "seconds")], "s",
          words="Grows while Redis is away."),
    Panel("Requests by tenant", [(f"topk(10, {rate('shoal_router_tenant_requests_total', 'tenant')})", "{{tenant}}")],
          "reqps"),
    Panel("Tokens by tenant", [(f"topk(10, {rate('shoal_router_tenant_tokens_total', 'tenant, kind')})",
          "{{tenant}} {{kind}}")], words="The first 100 tenants have names of their own.", width=16),
]  # fmt: skip

DASHBOARDS = {
    "service": ("shoal: service level", SERVICE),
    "engine": ("shoal: engine", ENGINE),
    "experts": ("shoal: expert parallelism", EXPERTS),
    "sessions": ("shoal: sessions and tenants", SESSIONS),
}


def built(name: str) -> dict[str, Any]:
    """One dashboard as Grafana reads it."""
    title, panels = DASHBOARDS[name]
    made, x, y = [], 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + 8
        made.append(panel.built(number, x, y))
        x += panel.width
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    # All of them is any value, none included: whoever scrapes a single cluster need not name it.
    release = {"name": "release", "label": "Release", "type": "query", "datasource": SOURCE, "refresh": 2,
               "query": 'label_values(up{shoal_role="router"}, shoal_release)', "multi": True, "includeAll": True,
               "allValue": ".*", "current": {"text": "All", "value": "$__all"}}  # fmt: skip
    return {
        "uid": f"shoal-{name}",
        "title": title,
        "tags": ["shoal"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, release]},
        "panels": made,
    }


def main() -> int:
    """Write the files, or with --check compare them."""
    stale = 0
    for name in DASHBOARDS:
        path, text = FOLDER / f"{name}.json", json.dumps(built(name), indent=1) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in sys.argv:
            print(f"{path} is not what helm/dashboards.py makes", file=sys.stderr)
            stale = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {path}")
    return stale


if __name__ == "__main__":
    sys.exit(main())

"""`shoal top`: groups, ranks, loads and tenants, live in a terminal."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shoal.cluster import whereabouts
from shoal.cluster.commands import status
from shoal.cluster.config import Settings
from shoal.cluster.own_access import OwnAccess

SHADES = " ░▒▓█"
"""From no load to the heaviest."""
_WIDEST = 64  # cells of the heat map; more experts share cells


def watch(settings: Settings, address: str | None, metrics: str | None, every: float, rounds: int | None) -> None:
    """Of the router that was named, else of the cluster that runs here. Raises NotRunningError."""
    access, there = OwnAccess.of(settings), whereabouts.find(settings, address)
    counted = metrics or there.metrics

    def look() -> dict[str, Any]:
        return status.look(there.router, there.redis_url, access) | {"tenants": tenants(counted) if counted else {}}

    with contextlib.suppress(KeyboardInterrupt):
        run(look, every, rounds, Console())


def tenants(address: str) -> dict[str, dict[str, float]]:
    """What each tenant used, as the router's /metrics at `address` says; empty when it does not answer."""
    used: dict[str, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=3) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "shoal_router_tenant_tokens_total":
                    used.setdefault(sample.labels["tenant"], {})[sample.labels["kind"]] = sample.value
                elif sample.name == "shoal_router_tenant_requests_total":
                    used.setdefault(sample.labels["tenant"], {})["requests"] = sample.value
    return used


def run(look: Callable[[], dict[str, Any]], every: float, rounds: int | None, console: Console) -> None:
    """Show what `look` returns, anew every `every` seconds, until Ctrl-C or for so many rounds.

    Tokens per second are differences between two looks.
    """
    before: dict[str, Any] | None = None
    seen = 0
    with Live(console=console, screen=console.is_terminal and rounds is None, auto_refresh=False) as live:
        while rounds is None or seen < rounds:
            if seen:
                time.sleep(every)
            report = look()
            live.update(picture(report, before, every), refresh=True)
            before, seen = report, seen + 1


def picture(report: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> RenderableType:
    """One look as a picture; `before` is the look `seconds` earlier."""
    router = report["router"]
    head = f"router {router['address']}  inference {router['inference']}  sessions {router['sessions']}"
    parts: list[RenderableType] = [Text(f"{head}  registry {report['registry']}")]
    for group in report["groups"]:
        parts += [_ranks(group, before, seconds), *_experts(group)]
    if tenants := report.get("tenants"):
        parts.append(_tenants(tenants))
    return Group(*parts)


def _ranks(group: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> Table:
    earlier = {w["worker_id"]: w for g in (before or {}).get("groups", ()) for w in g["workers"]}
    title = f"group {group['group']}  epoch {group['epoch']}  {'ready' if group['ready'] else 'NOT READY'}"
    table = Table("rank", "address", "state", "running", "waiting", "KV", "tokens/s", title=title, title_justify="left")
    for worker in group["workers"]:
        state = "ready" if worker["ready"] else "not ready" if worker["reachable"] else "unreachable"
        used = f"{worker['kv_used']:.0%}" if "kv_used" in worker else ""
        table.add_row(
            str(worker["rank"]), worker["address"], state, str(worker.get("running", "")),
            str(worker.get("waiting", "")), used, _speed(worker, earlier.get(worker["worker_id"]), seconds),
        )  # fmt: skip
    return table


def _speed(worker: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> str:
    """Tokens generated per second since `before`, empty when that is not known."""
    if before is None or "generated_tokens" not in worker or "generated_tokens" not in before:
        return ""
    return f"{max(0, worker['generated_tokens'] - before['generated_tokens']) / seconds:.0f}"


def _experts(group: Mapping[str, Any]) -> list[RenderableType]:
    """A line per rank: its experts' tokens, shaded by the heaviest of the group."""
    lines: list[RenderableType] = []
    loads = {w["rank"]: w["expert_tokens"] for w in group["workers"] if w.get("expert_tokens")}
    if not loads:
        return lines
    heaviest = max(max(tokens.values()) for tokens in loads.values())
    totals = [sum(tokens.values()) for tokens in loads.values()]
    mean = sum(totals) / len(totals)
    lines.append(Text(f"experts, over all layers; busiest rank {max(totals) / mean if mean else 1.0:.2f} x the mean"))
    for rank, tokens in sorted(loads.items()):
        lines.append(Text(f"  {rank:>3} {heat([tokens[e] for e in sorted(tokens, key=int)], heaviest)}"))
    return lines


def heat(loads: list[int], heaviest: int) -> str:
    """Loads as shades, neighbours sharing a cell where there are too many.

    >>> heat([0, 1, 2, 4], 4)
    ' ░▒█'
    """
    per_cell = -(-len(loads) // _WIDEST)
    cells = [max(loads[i : i + per_cell]) for i in range(0, len(loads), per_cell)]
    top = len(SHADES) - 1
    return "".join(SHADES[min(top, round(top * cell / heaviest))] if heaviest else SHADES[0] for cell in cells)


def _tenants(tenants: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("tenant", "requests", "tokens in", "tokens out", title="tenants", title_justify="left")
    heaviest = sorted(tenants.items(), key=lambda item: -sum(item[1].values()))
    for name, used in heaviest[:10]:
        table.add_row(name, *(f"{used.get(kind, 0):.0f}" for kind in ("requests", "input", "output")))
    return table

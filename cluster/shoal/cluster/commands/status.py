"""`shoal status`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from shoal.cluster import whereabouts
from shoal.cluster.client import INFERENCE, SESSIONS, health, worker_status
from shoal.cluster.config import Settings
from shoal.cluster.errors import UnhealthyError
from shoal.cluster.own_access import OwnAccess
from shoal.proto.v1 import worker_pb2
from shoal.wire.load import AUTOSCALE_KEY, AutoscaleEntry
from shoal.wire.registry import GROUPS_KEY, GroupEntry, decode, group_key

_TIMEOUT = 3.0  # seconds for each question


def run(settings: Settings, address: str | None, as_json: bool) -> None:
    """Print the state of everything. Raises NotRunningError, and UnhealthyError when it cannot serve."""
    there = whereabouts.find(settings, address)
    report = look(there.router, there.redis_url, OwnAccess.of(settings)) | {"pid": there.pid}
    if as_json:
        print(json.dumps(report, indent=2, sort_keys=True))
    else:
        _print(report, Console())
    if not report["healthy"]:
        raise UnhealthyError(f"the cluster behind {address} cannot serve: see above")


def look(address: str, redis_url: str, access: OwnAccess | None = None) -> dict[str, Any]:
    """Router, groups and workers as plain values; what does not answer is told as such, nothing is raised."""
    generates, keeps = (health(address, _TIMEOUT, service, access) for service in (INFERENCE, SESSIONS))
    problem, entries = read_registry(redis_url) if redis_url else ("", [])
    scaling = read_autoscale(redis_url) if redis_url and not problem else None
    groups = [_group(entry, access) for entry in entries]
    serving = generates == "SERVING" and (keeps == "SERVING" or not redis_url)
    healthy = serving and not problem and all(group["ready"] for group in groups)
    return {
        "router": {"address": address, "inference": generates, "sessions": keeps},
        "registry": problem or "ok",
        "groups": groups,
        "autoscale": dataclasses.asdict(scaling) if scaling is not None else None,
        "healthy": healthy,
    }


def read_registry(redis_url: str) -> tuple[str, list[GroupEntry]]:
    """What is wrong with Redis, empty when nothing, and every group's record."""

    from shoal.router.store.away import ABSENT
    from shoal.router.store.blocking import connect_blocking

    try:
        with contextlib.closing(connect_blocking(redis_url, _TIMEOUT)) as client:
            names = sorted(_text(name) for name in client.smembers(GROUPS_KEY))
            records = [client.get(group_key(name)) for name in names]
            return "", [decode(_text(record).encode()) for record in records if record is not None]
    except (*ABSENT, ValueError) as error:
        return f"{type(error).__name__}: {error}", []


def read_autoscale(redis_url: str) -> AutoscaleEntry | None:
    """What the autoscaler sees and decided last; None: there is none, or Redis does not say."""

    from shoal.router.store.away import ABSENT
    from shoal.router.store.blocking import connect_blocking

    try:
        with contextlib.closing(connect_blocking(redis_url, _TIMEOUT)) as client:
            raw = client.get(AUTOSCALE_KEY)
            return AutoscaleEntry.decode(_text(raw).encode()) if raw is not None else None
    except (*ABSENT, ValueError):
        return None


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


def _group(entry: GroupEntry, access: OwnAccess | None) -> dict[str, Any]:
    workers = []
    for worker in entry.workers:
        state = worker_status(worker.address, _TIMEOUT, access)
        described: dict[str, Any] = {"rank": worker.rank, "worker_id": worker.worker_id, "address": worker.address}
        if state is None:
            described |= {"ready": False, "reachable": False}
        else:
            described |= {
                "ready": state.ready,
                "reachable": True,
                "pid": state.pid,
                "kernels": state.kernel_path,
                "experts": len(state.expert_loads),
                "running": state.running,
                "waiting": state.waiting,
                "kv_used": round(state.kv_blocks_used / state.kv_blocks, 4) if state.kv_blocks else 0.0,
                "steps": state.steps,
                "prompt_tokens": state.prompt_tokens,
                "generated_tokens": state.generated_tokens,
                "replayed_steps": state.replayed_steps,
                "start_seconds": {phase: round(spent, 3) for phase, spent in sorted(state.start_seconds.items())},
                "expert_tokens": _expert_tokens(state),
            }
        workers.append(described)
    ready = entry.ready and all(worker["ready"] for worker in workers)
    return {"group": entry.group, "epoch": entry.epoch, "ready": ready, "workers": workers}


def _expert_tokens(state: worker_pb2.GetStatusResponse) -> dict[str, int]:
    """Tokens that each expert of a rank computed, over all layers."""
    tokens: Counter[str] = Counter()
    for load in state.expert_loads:
        tokens[str(load.expert)] += load.tokens
    return dict(tokens)


def _print(report: dict[str, Any], console: Console) -> None:
    router = report["router"]
    states = ", ".join(f"{name} {_coloured(router[name])}" for name in ("inference", "sessions"))
    console.print(f"router {router['address']}: {states}; registry {report['registry']}", highlight=False)
    for group in report["groups"]:
        kernels = ", ".join(sorted({worker.get("kernels", "unknown") for worker in group["workers"]}))
        console.print(f"group {group['group']}, epoch {group['epoch']}, kernels {kernels}", highlight=False)
        table = Table("rank", "address", "state", "experts", "running", "waiting", "KV", "tokens out")
        for worker in group["workers"]:
            state = "[green]ready[/]" if worker["ready"] else "[red]not ready[/]"
            if not worker["reachable"]:
                state = "[red]unreachable[/]"
            figures = [str(worker.get(key, "")) for key in ("experts", "running", "waiting")]
            used = f"{worker['kv_used']:.0%}" if "kv_used" in worker else ""
            tokens = str(worker.get("generated_tokens", ""))
            table.add_row(str(worker["rank"]), worker["address"], state, *figures, used, tokens)
        console.print(table)
    if report["autoscale"] is not None:
        console.print(autoscale_words(AutoscaleEntry(**report["autoscale"])), highlight=False)


def autoscale_words(entry: AutoscaleEntry) -> str:
    """What it sees, and what it decided last and why.

    >>> entry = AutoscaleEntry(2, 1, 4, 0.25, 0.5, 1.5, "", before=1, after=2, why="queue too long")
    >>> autoscale_words(entry).partition(" at ")[0]
    'autoscale: 2 groups of 1 to 4; queue 0.25 s, KV 50%, first token 1.50 s; last: 1 -> 2'
    """
    feels = f"queue {entry.queue_seconds:.2f} s, KV {entry.kv_used:.0%}, first token {entry.first_token_seconds:.2f} s"
    words = f"autoscale: {entry.groups} groups of {entry.least} to {entry.most}; {feels}"
    if entry.before:
        when = datetime.fromtimestamp(entry.when).astimezone().isoformat(sep=" ", timespec="seconds")
        words += f"; last: {entry.before} -> {entry.after} at {when}: {entry.why}"
    return words + (f"; now: {entry.doing}" if entry.doing else "")


def _coloured(state: str) -> str:
    return f"[{'green' if state == 'SERVING' else 'red'}]{state}[/]"

"""A group's state as plain values, for people and machines."""

from __future__ import annotations

import dataclasses
from typing import Any

from shoal.cluster.group_state import GroupState


def describe(state: GroupState) -> dict[str, Any]:
    """What the controller tells of one group. Ranks of the epoch in force first, then whoever has none."""
    reports = {r.rank: r for r in state.reports}
    ranks = {m.worker_id: m.rank for m in state.spec.members} if state.spec else {}
    workers = []
    for hand in sorted(state.workers, key=lambda h: (ranks.get(h.name, len(ranks)), h.name)):
        rank = ranks.get(hand.name)
        report = reports.get(rank) if rank is not None else None
        facts = dataclasses.asdict(hand.facts) if hand.facts is not None else {"worker_id": hand.name}
        workers.append({
            "rank": rank, "stage": str(hand.stage), **facts,
            "experts_held": report.experts_held if report else 0,
            "pause": report.pause if report else 0.0,
        })  # fmt: skip
    return {
        "group": state.group,
        "epoch": state.spec.epoch if state.spec else state.epoch,
        "phase": str(state.phase),
        "reason": state.reason,
        "ep_size": state.ep_size,
        "workers": workers,
    }

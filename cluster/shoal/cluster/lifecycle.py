"""The life of one group as a pure state machine: (state, event, now) -> (state, actions).

    PLACING -> PREPARING -> JOINING -> READY -> STOPPING -> STOPPED
        \\__________\\___________\\_______\\--> FAILED -----/

Nothing here waits, calls or reads a clock: the controller performs the actions and reports what came of them as
events, so that the same code runs under Ray, in tests and in a simulator. Events that come too late for the phase are
dropped: whatever they report belongs to processes that the phase's change already gave up.

A group that fails before it was ready gives its places back. One that loses a rank while it serves is only marked not
ready, its survivors kept with all they hold: forming the next epoch from them is the repair's work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from shoal.cluster.placement import even_placement
from shoal.wire.registry import GroupEntry, WorkerEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, Member, WorkerFacts

T = TypeVar("T")


class Phase(StrEnum):
    """Where a group is in its life."""

    PLACING = "placing"  # places for all ranks are asked for together
    PREPARING = "preparing"  # processes start, read the checkpoint, listen
    JOINING = "joining"  # each reads its experts and connects to its peers
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


STARTING = (Phase.PLACING, Phase.PREPARING, Phase.JOINING)


@dataclass(frozen=True, slots=True)
class GroupState:
    """Everything that is known of one group. Times are seconds of the controller's clock."""

    group: str
    ep_size: int
    epoch: int
    store_host: str
    store_port: int
    deadline: float
    """When a start that is not done has failed."""
    phase: Phase = Phase.PLACING
    facts: tuple[WorkerFacts | None, ...] = ()
    """By rank, once prepared."""
    reports: tuple[EpochReport | None, ...] = ()
    """By rank, once joined."""
    reason: str = ""
    """Why it failed."""

    def __post_init__(self) -> None:
        assert len(self.facts) in (0, self.ep_size), f"facts of {len(self.facts)} ranks, not {self.ep_size}"
        assert len(self.reports) in (0, self.ep_size), f"reports of {len(self.reports)} ranks, not {self.ep_size}"


# -- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """The group is wanted."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Every rank has its place."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A rank's process listens."""

    rank: int
    facts: WorkerFacts


@dataclass(frozen=True, slots=True)
class Joined:
    """A rank holds its experts and is connected."""

    rank: int
    report: EpochReport


@dataclass(frozen=True, slots=True)
class Broken:
    """Something did not succeed, or a rank died or stopped serving. `rank` is None when it concerns the group."""

    rank: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The group is not wanted any more; running requests get `grace` seconds."""

    grace: float


@dataclass(frozen=True, slots=True)
class Released:
    """All of the group's processes and places are gone."""


Event = Begun | Placed | Prepared | Joined | Broken | Tick | StopAsked | Released

# -- actions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reserve:
    """Get places for all ranks together; answer Placed or Broken."""

    ep_size: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start the process of every rank and let it prepare; answer Prepared or Broken per rank."""

    ep_size: int


@dataclass(frozen=True, slots=True)
class Join:
    """Let every rank join; answer Joined or Broken per rank."""

    spec: GroupSpec


@dataclass(frozen=True, slots=True)
class Publish:
    """Write the registry's record, so that routers see the group as it is."""

    entry: GroupEntry


@dataclass(frozen=True, slots=True)
class Release:
    """Stop all processes, after `grace` seconds for running requests, and give the places back; answer Released."""

    grace: float


Action = Reserve | Prepare | Join | Publish | Release
Step = tuple[GroupState, tuple[Action, ...]]


def step(state: GroupState, event: Event, now: float) -> Step:
    """What one event makes of a group, and what is to be done about it, in order."""
    phase = state.phase
    match event:
        case Begun() if phase is Phase.PLACING:
            # A record of an earlier life may still call the group ready, with addresses where nobody lives.
            absent = GroupEntry(state.group, state.epoch, ready=False, workers=())
            return state, (Publish(absent), Reserve(state.ep_size))
        case Placed() if phase is Phase.PLACING:
            nobody = (None,) * state.ep_size
            return replace(state, phase=Phase.PREPARING, facts=nobody), (Prepare(state.ep_size),)
        case Prepared(rank, facts) if phase is Phase.PREPARING:
            return _prepared(replace(state, facts=_put(state.facts, rank, facts)))
        case Joined(rank, report) if phase is Phase.JOINING:
            state = replace(state, reports=_put(state.reports, rank, report))
            if None in state.reports:
                return state, ()
            return replace(state, phase=Phase.READY), (Publish(registry_entry(state, ready=True)),)
        case Broken(rank, why) if phase in STARTING:
            return _failed_start(state, _told(rank, why))
        case Broken(rank, why) if phase is Phase.READY:
            failed = replace(state, phase=Phase.FAILED, reason=_told(rank, why))
            return failed, (Publish(registry_entry(failed, ready=False)),)
        case Tick() if phase in STARTING and now >= state.deadline:
            return _failed_start(state, f"not ready in time, still {phase}{_missing(state)}")
        case StopAsked(grace) if phase not in (Phase.STOPPING, Phase.STOPPED):
            # Routers must stop sending before the workers refuse.
            gone = GroupEntry(state.group, state.epoch, ready=False, workers=())
            return replace(state, phase=Phase.STOPPING), (Publish(gone), Release(grace))
        case Released() if phase is Phase.STOPPING:
            return replace(state, phase=Phase.STOPPED), ()
        case _:
            return state, ()


def disagreement(facts: tuple[WorkerFacts, ...]) -> str:
    """What the ranks do not agree on, empty when they may form a group.

    `numerics_id` covers device class, dtype, kernel version and checkpoint: results are only equal bit for bit
    within one.
    """
    for name in ("numerics_id", "tokenizer_hash", "num_layers", "num_experts"):
        values = [getattr(f, name) for f in facts]
        for rank, value in enumerate(values):
            if value != values[0]:
                return f"ranks 0 and {rank} differ in {name}: {values[0]} and {value}"
    if facts[0].num_experts < len(facts):
        return f"{len(facts)} ranks cannot share {facts[0].num_experts} experts: lower cluster.ep_size"
    return ""


def registry_entry(state: GroupState, ready: bool) -> GroupEntry:
    """The group as routers shall see it."""
    workers = tuple(WorkerEntry(f.worker_id, rank, f.address) for rank, f in enumerate(state.facts) if f is not None)
    return GroupEntry(state.group, state.epoch, ready, workers)


def _prepared(state: GroupState) -> Step:
    facts = tuple(f for f in state.facts if f is not None)
    if len(facts) < state.ep_size:
        return state, ()
    if why := disagreement(facts):
        return _failed_start(state, why)
    members = tuple(Member(rank, f.worker_id, f.address) for rank, f in enumerate(facts))
    placement = even_placement(facts[0].num_layers, facts[0].num_experts, state.ep_size)
    spec = GroupSpec(state.group, state.epoch, state.store_host, state.store_port, members, placement)
    return replace(state, phase=Phase.JOINING, reports=(None,) * state.ep_size), (Join(spec),)


def _failed_start(state: GroupState, reason: str) -> Step:
    return replace(state, phase=Phase.FAILED, reason=reason), (Release(grace=0.0),)


def _put(items: tuple[T | None, ...], rank: int, item: T) -> tuple[T | None, ...]:
    assert 0 <= rank < len(items), f"rank {rank} of {len(items)}"
    return (*items[:rank], item, *items[rank + 1 :])


def _told(rank: int | None, why: str) -> str:
    return why if rank is None else f"rank {rank}: {why}"


def _missing(state: GroupState) -> str:
    pending = {Phase.PREPARING: state.facts, Phase.JOINING: state.reports}.get(state.phase, ())
    ranks = [str(rank) for rank, item in enumerate(pending) if item is None]
    return f" (waiting for rank {', '.join(ranks)})" if ranks else ""

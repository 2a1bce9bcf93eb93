"""What is known of one group, what can happen to it, and what can be done about it: the words of `lifecycle`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from shoal.workers.experts.placement import Placement


class Phase(StrEnum):
    """Where a group is in its life."""

    STARTING = "starting"  # no epoch yet: processes start, read the checkpoint, listen
    READY = "ready"
    CHANGING = "changing"  # the next epoch is being entered
    WAITING = "waiting"  # those left cannot hold all experts: more must come first
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


OVER = (Phase.FAILED, Phase.STOPPING, Phase.STOPPED)


class Stage(StrEnum):
    """Where a worker is in its own."""

    STARTING = "starting"
    SPARE = "spare"  # prepared, in no epoch
    MEMBER = "member"
    LEAVING = "leaving"  # a member that takes nothing new and goes once it is empty


@dataclass(frozen=True, slots=True)
class Hand:
    """One worker that is alive as far as anybody knows."""

    name: str
    stage: Stage = Stage.STARTING
    facts: WorkerFacts | None = None
    busy: bool = True
    """Whether sequences run on it."""
    leave_by: float = 0.0
    """When it goes even if it is busy."""


@dataclass(frozen=True, slots=True)
class Change:
    """An epoch being entered."""

    spec: GroupSpec
    together: bool
    """Whether the epoch before still works, so that its members come to rest by agreement."""
    reports: tuple[EpochReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What does not change in a group's life. Times are seconds."""

    store_host: str = "127.0.0.1"
    """Where the members of an epoch meet."""
    spares: int = 0
    """Workers kept prepared beyond `ep_size`."""
    start_timeout: float = 600.0
    drain_timeout: float = 30.0
    """How long a leaving worker may finish what it has."""
    settle: float = 0.02
    """How long to wait, after the first sign of a broken exchange, for the word of who died."""
    breath: float = 1.0
    """How long, after a member's death, the others have their machines to themselves: they mend the group and compute
    again what was lost before a replacement starts, which would take longer and make them wait."""
    patience: int = 3
    """Failures in a row of the same kind before somebody is given up."""
    again: float = 0.0
    """How long after it failed a group begins anew, twice as long after each further time; 0: when it is asked for."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """Everything that is known of one group. Times are seconds of the controller's clock."""

    group: str
    ep_size: int
    """Members wanted."""
    epoch: int
    """The last one begun."""
    deadline: float
    """When a first start that is not done has failed."""
    policy: Policy = Policy()
    phase: Phase = Phase.STARTING
    workers: tuple[Hand, ...] = ()
    spec: GroupSpec | None = None
    """The epoch in force, or the last one that was."""
    reports: tuple[EpochReport, ...] = ()
    change: Change | None = None
    broken: bool = False
    """The epoch in force does not go on."""
    settle_at: float = 0.0
    """When a broken epoch is replaced."""
    serial: int = 0
    """Number of the next worker."""
    failures: int = 0
    """Epochs in a row that could not be entered."""
    unfit: int = 0
    """Times that the self-test failed."""
    scarce: int = 0
    """So many members could not hold all experts."""
    hire_failures: int = 0
    hire_at: float = 0.0
    """When the next worker may be started."""
    placement: Placement | None = None
    """A better one for the members as they are, not yet in force."""
    ever_ready: bool = False
    reason: str = ""
    """Why it is not as it should be."""

    def hand(self, name: str) -> Hand | None:
        """The worker of that name."""
        return next((h for h in self.workers if h.name == name), None)

    def at(self, *stages: Stage) -> tuple[Hand, ...]:
        """Workers at these stages, the oldest first."""
        return tuple(h for h in self.workers if h.stage in stages)

    @property
    def members(self) -> tuple[Hand, ...]:
        """The living of the epoch in force, by rank."""
        names = [m.worker_id for m in self.spec.members] if self.spec is not None else []
        return tuple(h for name in names if (h := self.hand(name)) is not None)


# -- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """The group is wanted. `found`: workers of an earlier controller that live, with the epoch each is in."""

    found: tuple[tuple[WorkerFacts, GroupSpec | None], ...] = ()
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A worker listens."""

    name: str
    facts: WorkerFacts


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is dead, hangs, or could not be started."""

    name: str
    why: str
    elsewhere: bool = False
    """Whether other groups serve, which compute again what was lost."""


class Mood(StrEnum):
    """What a worker says of itself."""

    SERVING = "serving"
    RESTING = "resting"  # paused, or its exchange broke
    UNFIT = "unfit"
    LEAVING = "leaving"  # it was told to end, or its engine did


@dataclass(frozen=True, slots=True)
class Word:
    """A worker spoke."""

    name: str
    epoch: int
    mood: Mood
    busy: bool
    why: str = ""
    draining: bool = False
    kv_used: float = 0.0
    """Share of its KV blocks in use."""
    queue_seconds: float = 0.0
    """How long the first in its queue has waited."""


@dataclass(frozen=True, slots=True)
class Entered:
    """A member serves the epoch."""

    name: str
    epoch: int
    report: EpochReport


class Obstacle(StrEnum):
    """Why a member did not enter an epoch."""

    NO_ROOM = "no room"
    UNFIT = "unfit"
    HUNG = "hung"
    UNREADABLE = "unreadable"  # what it must hold cannot be read, neither from the checkpoint nor from a peer
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Refused:
    """A member did not enter the epoch."""

    name: str
    epoch: int
    obstacle: Obstacle
    why: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """So many members are wanted."""

    ep_size: int


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """This worker shall go; another takes its place."""

    name: str


@dataclass(frozen=True, slots=True)
class Balanced:
    """A better placement for the epoch in force."""

    epoch: int
    placement: Placement


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


Event = (
    Begun | Prepared | Lost | Word | Entered | Refused | Scaled | DrainAsked | Balanced | Tick | StopAsked | Released
)  # fmt: skip

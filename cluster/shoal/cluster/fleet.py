"""The seam between the controller and the processes of its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from shoal.cluster.group_state import Obstacle, Word
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.errors import NoRoomError, UnfitError
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts


class FleetError(Exception):
    """A worker could not be placed, or failed or died; the message is one line."""

    def __init__(self, why: str, obstacle: Obstacle = Obstacle.OTHER) -> None:
        super().__init__(why)
        self.obstacle = obstacle


def obstacle_behind(error: BaseException | None) -> Obstacle:
    """What kind of refusal a worker's exception is."""
    match error:
        case NoRoomError():
            return Obstacle.NO_ROOM
        case UnfitError():
            return Obstacle.UNFIT
        case CheckpointError():
            return Obstacle.UNREADABLE
        case _:
            return Obstacle.OTHER


@dataclass(frozen=True, slots=True)
class Found:
    """A worker that an earlier controller left behind."""

    name: str
    facts: WorkerFacts | None
    """None when it was not prepared."""
    spec: GroupSpec | None
    """The epoch that it is in."""
    epoch: int = 0
    """The last one that it was asked to enter."""


class Fleet(Protocol):
    """Workers by name. Methods raise FleetError unless they say otherwise, and may be cancelled."""

    async def hire(self, group: str, name: str) -> WorkerFacts:
        """Get a place, start the process and let it prepare."""

    async def stage(self, name: str, spec: GroupSpec, patient: bool) -> None:
        """Let it get the experts that the epoch will want, while it serves. `patient`: nobody waits for that."""

    async def enter(self, name: str, spec: GroupSpec, together: bool) -> EpochReport:
        """Let it change epoch. The obstacle is HUNG when it does not answer."""

    async def drain(self, name: str, wanted: bool) -> None:
        """Let it take nothing new, or requests again."""

    async def kill(self, name: str, facts: WorkerFacts | None) -> None:
        """End it, whatever it does, and give its place back. Never raises; safe to repeat."""

    async def dismiss(self, name: str, grace: float) -> None:
        """Let it end, then give its place back. Never raises; safe to repeat."""

    async def groups(self) -> list[str]:
        """Names of the groups that have workers."""

    async def survey(self, group: str) -> list[Found]:
        """The group's workers that live."""


class Watch(Protocol):
    """Listens to one worker."""

    def __call__(self, facts: WorkerFacts) -> AsyncIterator[Word]:
        """Its words, until it is dead. Silence is judged by who listens."""


class Meeting(Protocol):
    """Where the members of one epoch meet; kept open while the epoch lives."""

    @property
    def port(self) -> int: ...

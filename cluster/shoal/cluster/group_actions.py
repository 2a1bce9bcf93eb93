"""What `lifecycle` asks the controller to do for one group."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.wire.registry import GroupEntry
from shoal.workers.experts.group import GroupSpec


@dataclass(frozen=True, slots=True)
class Hire:
    """Get a place, start the process, let it prepare; answer Prepared or Lost."""

    name: str


@dataclass(frozen=True, slots=True)
class Enter:
    """Let every member enter the epoch; answer Entered or Refused per member."""

    spec: GroupSpec
    together: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """Let the worker take nothing new, or requests again."""

    name: str
    wanted: bool


@dataclass(frozen=True, slots=True)
class Dismiss:
    """The worker is needed no more: let it end, and give its place back."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker must not live on, whatever it does, and its place is given back."""

    name: str


@dataclass(frozen=True, slots=True)
class Remind:
    """Tick again at this time."""

    at: float


@dataclass(frozen=True, slots=True)
class Publish:
    """Write the registry's record, so that routers see the group as it is."""

    entry: GroupEntry


@dataclass(frozen=True, slots=True)
class Release:
    """Stop all processes, after `grace` seconds for running requests, and give the places back; answer Released."""

    grace: float


Action = Hire | Enter | Drain | Dismiss | Kill | Remind | Publish | Release

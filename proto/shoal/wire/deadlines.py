"""Deadlines: on a wire a unix time in seconds, in a process a point of the event loop's clock.

gRPC carries a deadline as the time that remains, which is what `remaining` is; a worker is told the unix time because
its stream serves many requests at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class CallContext(Protocol):
    """The part of a gRPC servicer context that is used here."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When nobody waits any more."""

    remaining: float  # seconds, counted from when this was made
    unix: float  # the same moment, seconds since 1970


def deadline_of(context: CallContext, longest: float, now: float | None = None) -> Deadline:
    """The caller's deadline, or `longest` seconds when that is earlier or the caller gave none.

    `now` is the unix time, for tests.
    """
    given = context.time_remaining()
    remaining = longest if given is None else max(0.0, min(given, longest))
    return Deadline(remaining, (time.time() if now is None else now) + remaining)

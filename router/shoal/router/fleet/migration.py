"""One sequence on its way over the workers: what the next one is told, and when trying ends. Pure: time is passed in.

A worker that is lost, or that hands its sequences over, costs a pause. The next one is given the prompt and every token
that was passed on, marked as generated; it rebuilds the sampler's position, penalties, stop texts and constraint from
them and goes on with the token that would have come. So nothing is missing, repeated or changed for the reader, who
keeps its own state (Harmony, text, cursors) all the while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.router.errors import MigrationFailedError, WireError, WorkerFaultError, WorkerLeavingError, WorkersBusyError
from shoal.router.fleet.backend import Accepted, Tokens, Work
from shoal.router.harmony.message import Run

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """When trying ends."""

    losses: int = 16
    """Most workers lost under one sequence; with 0 the first loss ends it."""
    stuck: int = 4
    """Most of them in a row without a new token: what runs may be what kills them."""
    seconds: float = 60.0
    """Longest time from a loss to the next token."""
    new_seconds: float = 5.0
    """Longest time from the first refusal to being taken, for a request that nobody took yet."""
    busy: int = 3
    """Workers asked before a client is told that all are busy."""
    same_seconds: float = 2.0
    """How long a worker that computes the same bits is waited for while another kind is free."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could go on with the sequence."""

    address: str
    numerics_id: str
    ready: bool
    """Whether it can be given work now; others are worth waiting for at most."""


class Migration:
    """The state of one sequence. Fed with what its workers say; belongs to one reader."""

    def __init__(self, work: Work, bounds: Bounds) -> None:
        self._first, self._bounds = work, bounds
        self._delivered: list[int] = []
        self._tries = 0
        self._losses = self._stuck = self._pauses = 0
        self._accepted = self._replays = False
        self._since: float | None = None  # of the first failure after the last token
        self._avoided: set[str] = set()  # workers that failed since then, or since the last pause
        self._asked: set[str] = set()  # workers that had no room, before any took it
        self._problem: WireError | None = None
        self._numerics_id, self._numerics_changed = work.numerics_id, False

    @property
    def delivered(self) -> int:
        """Tokens passed on, those of earlier owners of the request included."""
        return self._first.start_offset + len(self._delivered)

    def next_work(self) -> Work:
        """What the next worker is told. Each call is another attempt."""
        first, said = self._first, tuple(self._delivered)
        work = replace(first, attempt=first.attempt + self._tries)
        self._tries += 1
        self._replays = self.delivered > 0
        if not said:
            return work
        return replace(work, prompt=(*first.prompt, Run(said, generated=True)), start_offset=self.delivered)

    def passes(self, output: Accepted | Tokens) -> Accepted | Tokens | None:
        """What the reader is told of a worker's output; None: nothing."""
        if isinstance(output, Accepted):
            return self._taken(output)
        if output.ids:
            self._delivered += output.ids
            self._since, self._problem, self._stuck, self._pauses = None, None, 0, 0
            self._avoided.clear()
        if self._replays and output.cached_tokens:
            output = replace(output, cached_tokens=0)  # found by a replay, which an undisturbed run does not have
        return replace(output, numerics_changed=True) if self._numerics_changed else output

    def failed(self, address: str, error: WireError, now: float) -> None:
        """A worker did not do it, or not to the end. Raises what the reader is told when nobody else is tried."""
        self._problem = error
        self._since = now if self._since is None else self._since
        self._avoided.add(address)
        if isinstance(error, WorkersBusyError) and not self._accepted:
            self._asked.add(address)
            if len(self._asked) >= self._bounds.busy:
                raise error
        elif not isinstance(error, (WorkersBusyError, WorkerLeavingError)):
            self._losses += 1
            self._stuck += 1
        if self._losses > self._bounds.losses or self._stuck >= self._bounds.stuck or self._late(now):
            raise self._over(now)

    def choose_among(self, candidates: Sequence[Candidate], now: float) -> list[str]:
        """Addresses of those that may be next; none: wait, call again when something changed or `pause` is over.

        Raises what the reader is told when nobody else is worth waiting for.
        """
        open_ = [c for c in candidates if c.address not in self._avoided]
        ready = [c for c in open_ if c.ready]
        same = [c for c in ready if c.numerics_id == self._numerics_id]
        if same or not (self._numerics_id and self.delivered):
            chosen = same or ready
        else:
            awaited = any(c.numerics_id == self._numerics_id for c in candidates)
            early = self._since is not None and now - self._since < self._bounds.same_seconds
            chosen = [] if awaited and early else ready
        if chosen:
            return [c.address for c in chosen]
        refused = isinstance(self._problem, WorkersBusyError) and not self._accepted
        if self._problem is not None and (refused or isinstance(self._problem, WorkerFaultError)):
            raise self._problem  # nobody has room, or nobody else is there to try what broke a worker
        if self._late(now):
            raise self._over(now)
        return []

    def pause(self) -> float:
        """Seconds to wait when nobody can be next; after that those that failed may be tried again."""
        self._avoided.clear()
        self._pauses += 1
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._pauses - 1, 10))

    def _taken(self, accepted: Accepted) -> Accepted | None:
        if self._numerics_id and accepted.numerics_id != self._numerics_id and self.delivered:
            self._numerics_changed = True
        self._numerics_id = accepted.numerics_id
        again, self._accepted = self._accepted, True
        return None if again else accepted

    def _late(self, now: float) -> bool:
        patience = self._bounds.seconds if self._accepted else self._bounds.new_seconds
        return self._since is not None and now - self._since >= patience

    def _over(self, now: float) -> WireError:
        problem = self._problem
        assert problem is not None, "nothing failed"
        if not self._accepted or not self._bounds.losses or isinstance(problem, WorkerFaultError):
            return problem
        assert self._since is not None, "nothing failed"
        return MigrationFailedError(self.delivered, self._tries, now - self._since, problem)

"""Writes what running requests generate to the journal: everybody's tokens of a moment in one round trip.

A stream never waits for the journal. What it says is kept here until it is stored; while Redis is away it stays here,
up to a bound. Tokens that a client saw and that were not stored yet are no loss: whoever goes on with the request
generates the very same ones again, because the seed is part of the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from shoal.proto.v1.journal_pb2 import JournalTokens
from shoal.proto.v1.worker_pb2 import SEQUENCE_FINISH_UNSPECIFIED
from shoal.router.errors import SessionsAwayError, TakenOverError, WireError
from shoal.router.fleet.backend import Tokens
from shoal.router.journal.journal import Journal
from shoal.router.journal.lease import Lease

_log = structlog.get_logger(__name__)

_MOST_PENDING = 65_536  # tokens of one request that wait for Redis to come back


class Recording:
    """What one request says, on its way to the journal. Belongs to one event loop."""

    def __init__(self, lease: Lease, recorder: Recorder) -> None:
        self.lease = lease
        self.problem: WireError | None = None
        """Why nothing more is journaled: TakenOverError when another router goes on with the request."""
        self.renewed = recorder.clock()
        """When Redis last heard of it."""
        self._recorder = recorder
        self._pending: list[JournalTokens] = []
        self._pending_tokens = 0

    @property
    def taken_over(self) -> bool:
        """Another router goes on with the request: this one's stream is of no use any more."""
        return isinstance(self.problem, TakenOverError)

    def add(self, output: Tokens, *, choice: int = 0, round_: int = 0, numerics_id: str = "") -> None:
        """Keep a worker's output. Returns at once; what joins the entry before it becomes part of that."""
        if self.problem is not None:
            return
        last = self._pending[-1] if self._pending else None
        if last is not None and _joins(last, output, choice, round_):
            last.ids.extend(output.ids)
            last.logprobs.extend(output.logprobs)
            last.top_logprobs.extend(output.likeliest)
            last.finish = output.finish
            last.cached_tokens = max(last.cached_tokens, output.cached_tokens)
        else:
            entry = JournalTokens(
                choice=choice, round=round_, offset=output.offset, ids=output.ids, logprobs=output.logprobs,
                top_logprobs=output.likeliest, finish=output.finish, cached_tokens=output.cached_tokens,
                epoch=output.epoch, tried=output.attempt, numerics_id=numerics_id,
            )  # fmt: skip
            self._pending.append(entry)
        self._pending_tokens += len(output.ids)
        if self._pending_tokens > _MOST_PENDING:
            self.problem = SessionsAwayError("the journal was away for too long")
            self._pending = []
        self._recorder.wake()

    def take(self) -> list[JournalTokens]:
        """What is to be stored now; it is pending no more."""
        taken, self._pending, self._pending_tokens = self._pending, [], 0
        return taken

    def give_back(self, entries: list[JournalTokens]) -> None:
        """They were not stored."""
        self._pending[:0] = entries
        self._pending_tokens += sum(len(entry.ids) for entry in entries)

    async def flush(self) -> None:
        """Wait until everything said so far is stored. Raises SessionsAwayError, or `problem`."""
        await self._recorder.flush(self)

    async def note(self, name: str, value: bytes) -> bytes:
        """See `Journal.note`; what was said before is stored first."""
        await self.flush()
        return await self._recorder.journal.note(self.lease, name, value)

    async def close(self, outcome: str = "", *, failed: bool = False) -> None:
        """The request ended. Never raises: what cannot be said now is told by the lease's end."""
        self._recorder.forget(self)
        try:
            await self._recorder.flush(self)
            await self._recorder.journal.finish(self.lease, outcome, failed=failed)
        except WireError as error:
            _log.info("journal_not_closed", work=self.lease.work_id, problem=error.reason)

    async def leave(self) -> None:
        """The request is left to whoever takes it over, at once. Never raises."""
        self._recorder.forget(self)
        with contextlib.suppress(WireError):
            await self._recorder.flush(self)
            await self._recorder.journal.release(self.lease)


class Recorder:
    """All recordings of one router. `run` is its background task."""

    def __init__(self, journal: Journal, *, period: float = 0.02, clock: Callable[[], float] = time.monotonic) -> None:
        """`period`: seconds over which tokens are collected before a round trip."""
        self.journal = journal
        self.clock = clock
        self.failures = 0
        """Round trips that failed, one after another."""
        self._period = period
        self._recordings: set[Recording] = set()
        self._woken = asyncio.Event()
        self._writing = asyncio.Lock()

    def open(self, lease: Lease) -> Recording:
        """Begin to record. The request's end calls `Recording.close`."""
        recording = Recording(lease, self)
        self._recordings.add(recording)
        return recording

    def forget(self, recording: Recording) -> None:
        """It is not looked after any more."""
        self._recordings.discard(recording)

    def wake(self) -> None:
        """There is something to store."""
        self._woken.set()

    async def run(self) -> None:
        """Store what is pending, again and again, and keep the leases of quiet requests; for ever."""
        patience = self.journal.limits.lease_seconds / 3
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self._store(list(self._recordings))
                await self._renew()
                self.failures = 0
            except SessionsAwayError as error:
                self.failures += 1
                if self.failures == 1:
                    _log.warning("journal_away", problem=error.message, requests=len(self._recordings))
                self._woken.set()  # what is pending stays so
            await asyncio.sleep(min(1.0, self._period * 2 ** min(self.failures, 10)))

    async def flush(self, recording: Recording) -> None:
        """See `Recording.flush`."""
        await self._store([recording])
        if recording.problem is not None:
            raise recording.problem

    async def close(self) -> None:
        """Let go of every lease, so that other routers need not wait for its end. Never raises."""
        for recording in list(self._recordings):
            self.forget(recording)
            try:
                await self.journal.release(recording.lease)
            except WireError:
                return

    async def _store(self, recordings: list[Recording]) -> None:
        """One writer at a time, so that what is given back keeps its order."""
        async with self._writing:
            batches = [(recording, entries) for recording in recordings if (entries := recording.take())]
            try:
                outcomes = await self.journal.append_all([(recording.lease, entries) for recording, entries in batches])
            except BaseException:
                for recording, entries in batches:
                    recording.give_back(entries)
                raise
        now = self.clock()
        for (recording, _), outcome in zip(batches, outcomes, strict=True):
            recording.renewed = now
            if outcome is not None:
                self._refused(recording, outcome)

    async def _renew(self) -> None:
        """Say of those that said nothing for a while that they live."""
        now, patience = self.clock(), self.journal.limits.lease_seconds / 3
        for recording in [r for r in self._recordings if r.problem is None and now - r.renewed >= patience]:
            try:
                await self.journal.renew(recording.lease)
                recording.renewed = now
            except SessionsAwayError:
                raise
            except WireError as error:
                self._refused(recording, error)

    def _refused(self, recording: Recording, error: WireError) -> None:
        recording.problem = error
        self.forget(recording)
        _log.warning("journal_refused", work=recording.lease.work_id, reason=error.reason)


def _joins(last: JournalTokens, output: Tokens, choice: int, round_: int) -> bool:
    """Whether the output goes on where the entry ends."""
    return (
        (last.choice, last.round, last.tried, last.epoch) == (choice, round_, output.attempt, output.epoch)
        and last.offset + len(last.ids) == output.offset
        and last.finish == SEQUENCE_FINISH_UNSPECIFIED
    )

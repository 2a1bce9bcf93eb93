"""What one request has to do with the journal, from its acceptance to its end.

    async with keeper.keeping(record, seconds) as kept:
        resumable = await kept.accepted()       once, before the first token is passed on
        kept.add(output, choice=0, round_=0)    each of the worker's outputs, before it is passed on

The end of the block is the end of the request, well or failed for good. What merely broke off (its client, this
router, every worker) is left to whoever resumes it:

    reopened = await keeper.reopen(tenant, name)
    async with keeper.keeping(reopened.record, seconds, reopened) as kept:

Without Redis, or while it is away, a request runs all the same and is not resumable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import structlog

from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.errors import RequestAbsentError, RequestOverError, SessionsAwayError, TakenOverError
from shoal.router.fleet.backend import Tokens
from shoal.router.journal.journal import Journal
from shoal.router.journal.lease import JournalView
from shoal.router.journal.recorder import Recorder, Recording
from shoal.router.journal.reopened import FINAL, Reopened, outcome_of
from shoal.router.journal.tool_fact import ToolFact
from shoal.router.store.silence import Silence
from shoal.wire.status import WireError, status_of

_INTERRUPTED = "The call was interrupted, and it is not known whether it took effect."

_log = structlog.get_logger(__name__)


class Kept:
    """One request. Made by `Keeper.keeping`."""

    def __init__(
        self, accepting: asyncio.Task[Recording | None], reopened: Reopened | None = None, *, private: bool = False
    ) -> None:
        self._accepting, self.private = accepting, private
        self._notes: Mapping[str, bytes] = reopened.view.notes if reopened is not None else {}
        self._over = reopened is not None and reopened.lease is None
        self.begun = reopened is not None
        """Whether a worker took some of it."""

    @property
    def recording(self) -> Recording | None:
        """Where it is recorded; None when it is not, or not yet."""
        return self._accepting.result() if self._accepting.done() and not self._accepting.cancelled() else None

    async def accepted(self) -> bool:
        """A worker took it: whether the record is kept, so that any router can go on with the request."""
        self.begun = True
        return await asyncio.shield(self._accepting) is not None or self._over

    def add(self, output: Tokens, *, choice: int = 0, round_: int = 0) -> None:
        """Keep a worker's output. Raises TakenOverError when another router goes on with the request."""
        recording = self.recording
        if recording is None or output.known:
            return
        if recording.taken_over:
            assert recording.problem is not None, "it was taken over"
            raise recording.problem
        if not self.private:
            recording.add(output, choice=choice, round_=round_, numerics_id=output.numerics_id)

    def answered(self, choice: int, round_: int) -> bool:
        """Whether an earlier owner had the result of the call that ended a round."""
        return f"tool:{choice}.{round_}" in self._notes

    async def tool(self, choice: int, round_: int, run: Callable[[], Awaitable[ToolFact]]) -> ToolFact:
        """The result of the call that ended a round: kept before it is used, and the tool is never run again.

        A call that was begun and whose result was not kept has failed: it may have taken effect. Raises
        TakenOverError when another router goes on.
        """
        call, result = f"call:{choice}.{round_}", f"tool:{choice}.{round_}"
        if result in self._notes:
            return ToolFact.from_bytes(self._notes[result])
        if call in self._notes:
            fact = ToolFact(_INTERRUPTED, failed=True, seconds=0.0)
        else:
            await self._note(call, b"")
            fact = await run()
        return ToolFact.from_bytes(await self._note(result, fact.to_bytes()))

    async def _note(self, name: str, value: bytes) -> bytes:
        if (recording := self.recording) is None:
            return value
        try:
            return await recording.note(name, value)
        except TakenOverError:
            raise
        except WireError as error:
            # The stream goes on. Whoever resumed it would have to run the tool again, so nothing more is kept.
            _log.warning("not_resumable", problem=error.message)
            recording.problem = recording.problem or error
            return value

    async def flush(self) -> None:
        """Store what was said so far, if that is possible now; raises TakenOverError."""
        if (recording := self.recording) is not None:
            with contextlib.suppress(SessionsAwayError):
                await recording.flush()


class Keeper:
    """Accepts requests for one router."""

    def __init__(self, recorder: Recorder | None, owner: str, silence: Silence | None = None) -> None:
        """`recorder` is None when there is no Redis; `owner` names the router."""
        self.recorder, self._owner, self._silence = recorder, owner, silence or Silence()

    async def knows(self, tenant: str, work_id: str) -> bool:
        """Whether the request that we call so was accepted, and is still kept. Raises SessionsAwayError."""
        return self.recorder is not None and await self.recorder.journal.exists(tenant, work_id)

    async def drop(self, tenant: str, work_id: str) -> None:
        """Nothing of a request that is over shall be left. Raises SessionsAwayError."""
        if self.recorder is not None:
            await self.recorder.journal.forget(tenant, work_id)

    async def reopen(self, tenant: str, name: str) -> Reopened:
        """The request that its caller or we call `name`: ours to go on with, or only to read when it is over.

        Raises RequestAbsentError, SessionsAwayError, and TakenOverError when somebody else does the same right now.
        """
        if self.recorder is None:
            raise RequestAbsentError("this router keeps no requests, so none can be resumed")
        journal = self.recorder.journal
        work_id = await journal.find(tenant, name)
        view = await _read(journal, tenant, work_id)
        record, lease = view.record, None
        assert record is not None, "a journal that is read from its beginning has its record"
        if view.state == "running":
            with contextlib.suppress(RequestOverError):  # it just ended
                lease = await journal.take_over(tenant, work_id, self._owner, attempt=view.attempt, orphaned=False)
            view = await _read(journal, tenant, work_id)  # who had it before writes no more
        return Reopened(record, view, lease)

    @contextlib.asynccontextmanager
    async def keeping(
        self, record: RequestRecord, seconds: float, reopened: Reopened | None = None, *, private: bool = False
    ) -> AsyncGenerator[Kept, None]:
        """Keep the request while inside; `seconds` are left until its deadline. With `reopened` it was accepted before.
        The acceptance runs beside whatever comes first. Of one that is `private` nothing that is said is kept: whoever
        goes on with it generates it again, and once it is over it is not told again."""
        accepting = asyncio.create_task(self._accept(record, seconds, reopened), name=f"accept {record.work_id}")
        kept = Kept(accepting, reopened, private=private)
        try:
            yield kept
        except (asyncio.CancelledError, GeneratorExit):
            await self._left(kept)
            raise
        except TakenOverError:
            raise
        except Exception as error:
            await accepting
            if (recording := kept.recording) is None:
                pass
            elif not kept.begun:
                await self._forget(recording)
            elif isinstance(error, WireError) and not isinstance(error, FINAL):
                await recording.leave()
            else:
                await recording.close(outcome_of(status_of(error)), failed=True)
            raise
        await accepting
        if (recording := kept.recording) is not None:
            await recording.close()

    async def _accept(self, record: RequestRecord, seconds: float, reopened: Reopened | None) -> Recording | None:
        if self.recorder is None:
            return None
        if reopened is not None:
            return self.recorder.open(reopened.lease) if reopened.lease is not None else None
        try:
            async with self._silence.respected():
                lease = await self.recorder.journal.accept(record, self._owner, seconds)
            return self.recorder.open(lease)
        except SessionsAwayError as error:
            _log.info("not_resumable", work=record.work_id, problem=error.message)
            return None

    async def _left(self, kept: Kept) -> None:
        """Nobody listens any more: what was said is kept for whoever resumes it."""
        with contextlib.suppress(asyncio.CancelledError):
            if await kept.accepted() and (recording := kept.recording) is not None:
                await recording.leave()

    async def _forget(self, recording: Recording) -> None:
        """It was refused before anything was told: its client asks anew."""
        assert self.recorder is not None, "what is recorded has a recorder"
        self.recorder.forget(recording)
        with contextlib.suppress(WireError):
            await self.recorder.journal.forget(recording.lease.tenant, recording.lease.work_id)


async def _read(journal: Journal, tenant: str, work_id: str) -> JournalView:
    view = await journal.read(tenant, work_id)
    if view is None:
        raise RequestAbsentError(f"there is no request {work_id!r}, or no longer")
    return view

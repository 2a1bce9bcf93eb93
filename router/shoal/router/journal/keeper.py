"""What one request has to do with the journal, from its acceptance to its end.

    async with keeper.keeping(record, seconds) as kept:
        resumable = await kept.accepted()       once, before the first token is passed on
        kept.add(output, choice=0, round_=0)    each of the worker's outputs, before it is passed on

The end of the block is the end of the request: well, or with the error that left it. A block that was cancelled, or
whose client went away, leaves the request to whoever resumes it.

Without Redis, or while it is away, a request runs all the same and is not resumable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog

from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.backend import Tokens
from shoal.router.journal.lease import Lease
from shoal.router.journal.recorder import Recorder, Recording
from shoal.wire.status import status_of

_log = structlog.get_logger(__name__)


class Kept:
    """One request. Made by `Keeper.keeping`."""

    def __init__(self, accepting: asyncio.Task[Recording | None]) -> None:
        self._accepting = accepting

    @property
    def recording(self) -> Recording | None:
        """Where it is recorded; None when it is not, or not yet."""
        return self._accepting.result() if self._accepting.done() and not self._accepting.cancelled() else None

    async def accepted(self) -> bool:
        """Whether the record is kept, so that any router can go on with the request."""
        return await asyncio.shield(self._accepting) is not None

    def add(self, output: Tokens, *, choice: int = 0, round_: int = 0, numerics_id: str = "") -> None:
        """Keep a worker's output. Raises TakenOverError when another router goes on with the request."""
        recording = self.recording
        if recording is None:
            return
        if recording.taken_over:
            assert recording.problem is not None, "it was taken over"
            raise recording.problem
        recording.add(output, choice=choice, round_=round_, numerics_id=numerics_id)

    async def flush(self) -> None:
        """Store what was said so far, if that is possible now; raises TakenOverError."""
        if (recording := self.recording) is not None:
            with contextlib.suppress(SessionsAwayError):
                await recording.flush()


class Keeper:
    """Accepts requests for one router."""

    def __init__(self, recorder: Recorder | None, owner: str) -> None:
        """`recorder` is None when there is no Redis; `owner` names the router."""
        self.recorder, self._owner = recorder, owner

    @contextlib.asynccontextmanager
    async def keeping(
        self, record: RequestRecord, seconds: float, lease: Lease | None = None
    ) -> AsyncGenerator[Kept, None]:
        """Keep the request while inside; `seconds` are left until its deadline. With `lease` it was accepted before
        and is taken over. The acceptance runs beside whatever comes first."""
        accepting = asyncio.create_task(self._accept(record, seconds, lease), name=f"accept {record.work_id}")
        kept = Kept(accepting)
        try:
            yield kept
        except (asyncio.CancelledError, GeneratorExit):
            await self._left(kept)
            raise
        except Exception as error:
            await accepting
            if (recording := kept.recording) is not None:
                status = status_of(error)
                await recording.close(f"{status.code.name}: {status.message}", failed=True)
            raise
        await accepting
        if (recording := kept.recording) is not None:
            await recording.close()

    async def _accept(self, record: RequestRecord, seconds: float, lease: Lease | None) -> Recording | None:
        if self.recorder is None:
            return None
        try:
            return self.recorder.open(lease or await self.recorder.journal.accept(record, self._owner, seconds))
        except SessionsAwayError as error:
            _log.info("not_resumable", work=record.work_id, problem=error.message)
            return None

    async def _left(self, kept: Kept) -> None:
        """Nobody listens any more: what was said is kept for whoever resumes it."""
        with contextlib.suppress(asyncio.CancelledError):
            if await kept.accepted() and (recording := kept.recording) is not None:
                await recording.leave()

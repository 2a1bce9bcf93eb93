"""A backend that tells the shared index which worker has just computed which prompt. Nobody waits for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.cache.prefixes import Prefixes, names_of
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.backend import Accepted, Backend, ModelFacts, Tokens, Work

_MOST_AT_ONCE = 64  # hints on their way; with more, new ones are left out


class Indexing:
    """A `Backend` in front of another."""

    def __init__(self, backend: Backend, prefixes: Prefixes) -> None:
        self._backend, self._prefixes = backend, prefixes
        self._telling: set[asyncio.Task[None]] = set()

    def model(self) -> ModelFacts | None:
        """See `Backend`."""
        return self._backend.model()

    async def wait_ready(self) -> ModelFacts:
        """See `Backend`."""
        return await self._backend.wait_ready()

    async def submit(self, work: Work) -> AsyncGenerator[Accepted | Tokens, None]:
        """See `Backend`."""
        worker = ""
        async with contextlib.aclosing(self._backend.submit(work)) as outputs:
            async for output in outputs:
                if isinstance(output, Accepted):
                    worker = output.worker_id
                elif output.finish != pb.SEQUENCE_FINISH_UNSPECIFIED:
                    self._tell(worker, work)
                yield output

    def _tell(self, worker: str, work: Work) -> None:
        if len(self._telling) >= _MOST_AT_ONCE:
            return
        names = names_of((token for run in work.prompt for token in run.ids), work.cache_salt)
        if names:
            task = asyncio.create_task(self._add(worker, names))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _add(self, worker: str, names: list[str]) -> None:
        with contextlib.suppress(SessionsAwayError):
            await self._prefixes.add(worker, names)

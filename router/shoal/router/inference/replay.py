"""A request that goes on: what is known of it comes from the journal, the rest from workers.

To everything above it is a `Backend`, so a request that goes on is read like a new one: the same code makes the same
events of the same tokens, and only those that a client has not seen are told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.journal_pb2 import JournalTokens
from shoal.router.fleet.backend import Accepted, Backend, ModelFacts, Tokens, Work
from shoal.router.harmony.message import Run
from shoal.router.journal.reopened import Reopened


class Replay:
    """A `Backend` for the work of one request that was accepted before."""

    def __init__(self, backend: Backend, reopened: Reopened) -> None:
        self._backend, self._reopened = backend, reopened

    def model(self) -> ModelFacts | None:
        """See `Backend`."""
        return self._backend.model()

    async def wait_ready(self) -> ModelFacts:
        """See `Backend`."""
        return await self._backend.wait_ready()

    async def submit(self, work: Work) -> AsyncGenerator[Accepted | Tokens, None]:
        """See `Backend`. What was said already comes at once; how a request that is over ended comes after that."""
        known = self._reopened.view.lane(work.choice, work.round)
        said: list[int] = []
        numerics_id, changed = work.numerics_id, False
        for entry in known:
            if not said:
                yield Accepted("", entry.numerics_id)
            changed |= numerics_id not in ("", entry.numerics_id)
            numerics_id = entry.numerics_id
            said += entry.ids
            yield _tokens_of(entry, changed)
            if entry.finish != pb.SEQUENCE_FINISH_UNSPECIFIED:
                return
            await asyncio.sleep(0)  # a long journal lets others go on in between
        lease = self._reopened.lease
        if lease is None:
            raise self._reopened.ended
        # A name of its own: a worker may know the request from an earlier owner, and may not have heard of its end.
        rest = replace(work, request_id=f"{work.request_id}.{lease.attempt}", numerics_id=numerics_id)
        if said:
            prompt = (*work.prompt, Run(tuple(said), generated=True))
            rest = replace(rest, prompt=prompt, start_offset=len(said))
        async with contextlib.aclosing(self._backend.submit(rest)) as outputs:
            async for output in outputs:
                if isinstance(output, Tokens):
                    yield replace(output, numerics_changed=True) if changed else output
                elif not known:
                    yield output


def _tokens_of(entry: JournalTokens, changed: bool) -> Tokens:
    return Tokens(
        offset=entry.offset,
        ids=tuple(entry.ids),
        logprobs=tuple(entry.logprobs),
        finish=entry.finish,
        cached_tokens=entry.cached_tokens,
        likeliest=tuple(entry.top_logprobs),
        numerics_id=entry.numerics_id,
        known=True,
        numerics_changed=changed,
    )

"""A backend that gives an answer again which cannot differ.

Work is remembered for tenants that asked for it, where its tokens are a function of what is in it: greedy, or with the
caller's own seed. An answer is only given again where the workers compute the same bits as those that it came from.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.journal_pb2 import JournalTokens
from shoal.router.cache.answers import Answers
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.backend import Accepted, Backend, ModelFacts, Tokens, Work
from shoal.router.store.silence import Silence

WORKER = "cache"
"""Who is said to have served an answer that was known."""

_LARGEST = 1 << 18  # bytes of one answer


def name_of(work: Work, numerics_id: str) -> str:
    """Of everything that the answer depends on, and of nothing else: not who asks, when, nor how often it was tried."""
    told = work.message()
    for field in ("request_id", "attempt", "cache_salt", "priority", "traceparent", "deadline"):
        told.ClearField(field)
    if told.sampling.temperature == 0:
        told.ClearField("seed")
    digest = hashlib.sha256(numerics_id.encode() + b"\0" + told.SerializeToString(deterministic=True))
    return digest.hexdigest()


class Remembering:
    """A `Backend` in front of another."""

    def __init__(
        self, backend: Backend, answers: Answers, numerics_id: Callable[[], str], silence: Silence | None = None
    ) -> None:
        """`numerics_id`: what all workers compute with now; empty when they differ."""
        self._backend, self._answers, self._numerics_id = backend, answers, numerics_id
        self._silence = silence or Silence()

    def model(self) -> ModelFacts | None:
        """See `Backend`."""
        return self._backend.model()

    async def wait_ready(self) -> ModelFacts:
        """See `Backend`."""
        return await self._backend.wait_ready()

    async def submit(self, work: Work) -> AsyncGenerator[Accepted | Tokens, None]:
        """See `Backend`. While Redis is away nothing is remembered and nothing fails."""
        numerics_id = self._numerics_id()
        if not work.remember or not numerics_id or work.start_offset:
            async with contextlib.aclosing(self._backend.submit(work)) as outputs:
                async for output in outputs:
                    yield output
            return
        name = name_of(work, numerics_id)
        if (known := await self._known(work.remember, name)) is not None:
            yield Accepted(WORKER, numerics_id)
            for entry in known:
                yield _tokens_of(entry)
            return
        said: list[Tokens] = []
        used = ""
        async with contextlib.aclosing(self._backend.submit(work)) as outputs:
            async for output in outputs:
                if isinstance(output, Accepted):
                    used = output.numerics_id
                else:
                    said.append(output)
                    if output.finish != pb.SEQUENCE_FINISH_UNSPECIFIED and used == numerics_id:
                        await self._keep(work.remember, name, said)
                yield output

    async def _known(self, tenant: str, name: str) -> tuple[JournalTokens, ...] | None:
        with contextlib.suppress(SessionsAwayError):
            async with self._silence.respected():
                return await self._answers.get(tenant, name)
        return None

    async def _keep(self, tenant: str, name: str, said: list[Tokens]) -> None:
        if any(output.numerics_changed for output in said):
            return
        entries = [_entry_of(output) for output in said]
        if sum(entry.ByteSize() for entry in entries) <= _LARGEST:
            with contextlib.suppress(SessionsAwayError):
                async with self._silence.respected():
                    await self._answers.put(tenant, name, entries)


def _entry_of(output: Tokens) -> JournalTokens:
    return JournalTokens(
        offset=output.offset,
        ids=output.ids,
        logprobs=output.logprobs,
        top_logprobs=output.likeliest,
        finish=output.finish,
        cached_tokens=output.cached_tokens,
        numerics_id=output.numerics_id,
    )


def _tokens_of(entry: JournalTokens) -> Tokens:
    return Tokens(
        offset=entry.offset,
        ids=tuple(entry.ids),
        logprobs=tuple(entry.logprobs),
        finish=entry.finish,
        cached_tokens=entry.cached_tokens,
        likeliest=tuple(entry.top_logprobs),
        numerics_id=entry.numerics_id,
    )

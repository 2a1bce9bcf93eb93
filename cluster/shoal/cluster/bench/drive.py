"""Asks a router as the workload says, and writes down when each token came."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from shoal.cluster.bench.outcome import Outcome
from shoal.cluster.bench.workload import Conversation
from shoal.cluster.errors import CallError, ConfigError
from shoal.cluster.own_access import OwnAccess
from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from shoal.proto.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_STREAMS = 256
"""Streams on one connection: a server takes a thousand, and one connection's flow control is shared by all."""

Clock = Callable[[], float]
Progress = Callable[[int], None]  # requests ended so far


@dataclass(frozen=True, slots=True)
class Manner:
    """How every request is made."""

    address: str
    model: str
    temperature: float
    timeout: float
    access: OwnAccess


class Driver:
    """Connections to one router. Use as an async context manager."""

    def __init__(self, manner: Manner, at_once: int, clock: Clock) -> None:
        """`at_once` is how many streams are expected; more are possible. `clock` counts seconds."""
        self._manner, self._clock = manner, clock
        count = min(64, max(1, -(-at_once // _STREAMS)))
        self._channels = [manner.access.aio_router(manner.address) for _ in range(count)]
        stubs: list[InferenceServiceAsyncStub] = [InferenceServiceStub(channel) for channel in self._channels]
        self._first = stubs[0]
        self._stubs: Iterator[InferenceServiceAsyncStub] = itertools.cycle(stubs)

    async def __aenter__(self) -> Driver:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def model(self, longest: int) -> pb.Model:
        """The model that will be asked. Raises CallError when nobody answers or no worker is ready, ConfigError when
        there is no such model or it cannot hold `longest` tokens."""
        manner = self._manner
        try:
            answer = await self._first.ListModels(
                pb.ListModelsRequest(), timeout=10, metadata=manner.access.metadata, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise CallError(
                    f"no router answers at {manner.address}: is `shoal serve` or `shoal router` running?"
                ) from error
            raise CallError(f"{error.code().name}: {error.details()} (router {manner.address})") from error
        names = [model.id for model in answer.models]
        chosen = next((model for model in answer.models if manner.model in ("", model.id)), None)
        if chosen is None:
            raise ConfigError(f"--model: there is no {manner.model!r} at {manner.address}, but {', '.join(names)}")
        if not chosen.ready or not chosen.vocab_size:
            raise CallError(f"{chosen.id} at {manner.address} has no ready worker yet")
        if longest > chosen.max_context:
            raise ConfigError(
                f"--prompt, --output: sequences of up to {longest} tokens, {chosen.id} holds {chosen.max_context}"
            )
        return chosen

    async def closed(
        self, conversations: Sequence[Conversation], users: int, seconds: float | None, progress: Progress
    ) -> list[Outcome]:
        """Each user begins the next conversation when the last has ended, none after `seconds`."""
        outcomes: list[Outcome] = []
        start, left = self._clock(), iter(conversations)

        async def user() -> None:
            for conversation in left:
                if seconds is not None and self._clock() - start >= seconds:
                    return
                await self._converse(conversation, start, self._clock() - start, outcomes, progress)

        await _all(user() for _ in range(users))
        return outcomes

    async def open(
        self, conversations: Sequence[Conversation], seconds: float | None, progress: Progress
    ) -> list[Outcome]:
        """Each conversation begins when it is due, whatever became of the others."""
        outcomes: list[Outcome] = []
        start = self._clock()

        async def one(conversation: Conversation) -> None:
            await asyncio.sleep(conversation.at - (self._clock() - start))
            await self._converse(conversation, start, conversation.at, outcomes, progress)

        await _all(one(c) for c in conversations if seconds is None or c.at < seconds)
        return outcomes

    async def _converse(
        self, conversation: Conversation, start: float, due: float, outcomes: list[Outcome], progress: Progress
    ) -> None:
        """All its turns; none after one that failed."""
        history: list[int] = []
        for place, turn in enumerate(conversation.turns):
            history += turn.tokens
            outcome = Outcome(conversation.number, place, due, self._clock() - start)
            history += await self._ask(history, turn.output, start, outcome)
            outcomes.append(outcome)
            progress(len(outcomes))
            if outcome.code != "OK":
                return
            due = outcome.ended

    async def _ask(self, prompt: list[int], output: int, start: float, outcome: Outcome) -> list[int]:
        """One request; what was generated."""
        manner = self._manner
        request = pb.GenerateRequest(
            tokens=pb.TokenIds(ids=prompt),
            model=manner.model,
            sampling=pb.Sampling(temperature=manner.temperature, seed=outcome.conversation),
            limits=pb.Limits(max_tokens=output, ignore_eos=True),
        )
        generated: list[int] = []
        call = next(self._stubs).Generate(request, timeout=manner.timeout, metadata=manner.access.metadata)
        try:
            async for event in call:
                match event.WhichOneof("event"):
                    case "tokens" if event.tokens.ids:
                        outcome.arrivals.append((self._clock() - start, len(event.tokens.ids)))
                        generated += event.tokens.ids
                    case "done":
                        outcome.input_tokens = event.done.usage.input_tokens
                        outcome.cached_tokens = event.done.usage.cached_tokens
        except grpc.aio.AioRpcError as error:
            outcome.code, outcome.message = error.code().name, error.details() or ""
        outcome.ended = self._clock() - start
        if outcome.code == "OK" and len(generated) != output:
            outcome.code, outcome.message = "SHORT", f"{len(generated)} tokens of {output}"
        return generated


async def _all(tasks: Iterator[Awaitable[None]]) -> None:
    """Like gather, and cancels the rest when one fails or this is cancelled."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()

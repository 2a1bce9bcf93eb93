"""A client that goes on: when its stream breaks it resumes at any router, behind the last event that it saw."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceStub

_AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED}
_SCHEMA = '{"type": "object", "properties": {"fish": {"type": "string"}, "n": {"type": "integer"}}, "required": ["n"]}'


def asked(number: int, tokens: int) -> api.GenerateRequest | api.ChatRequest:
    """One of many kinds: raw and chat, greedy and seeded, several choices, log-probabilities, free and constrained."""
    sampling = api.Sampling(seed=number, temperature=0.0 if number % 2 else 1.0, frequency_penalty=0.2)
    if number % 4 < 2:
        limits = api.Limits(max_tokens=tokens, ignore_eos=True, stop=["\x00\x00\x00"])
        return api.GenerateRequest(
            text=f"A shoal of {number} fish", sampling=sampling, limits=limits, n=2 if number % 8 == 0 else 1,
            logprobs=number % 3 == 0,
        )  # fmt: skip
    turn = api.ChatRequest(
        messages=[api.Message(role=api.ROLE_USER, content=f"Tell me of {number} fish.")],
        sampling=sampling, limits=api.Limits(max_tokens=tokens),
    )  # fmt: skip
    if number % 8 >= 6:
        turn.response_format.kind = api.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        turn.response_format.schema = _SCHEMA
        turn.reasoning_budget = tokens // 3
    return turn


@dataclass
class Listener:
    """One request of one client, until its end."""

    number: int
    tokens: int
    events: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each event came."""
    errors: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    failed: str = ""
    """The error that nothing could be done about."""

    async def listen(self, addresses: Sequence[str], chance: random.Random, seconds: float = 180.0) -> None:
        """Ask one of the routers, and go on at any of them until `done`."""
        give_up = time.monotonic() + seconds
        while not self._over():
            address = chance.choice(addresses)
            try:
                async with grpc.aio.insecure_channel(address) as channel:
                    async for event in self._stream(InferenceServiceStub(channel)):
                        if event.WhichOneof("event") == "error":
                            break  # the status says it again
                        self.events.append(event)
                        self.times.append(time.monotonic())
            except grpc.aio.AioRpcError as error:
                self.errors[error.code().name] += 1
                if error.code() not in _AGAIN or time.monotonic() > give_up:
                    self.failed = f"{error.code().name}: {error.details()}"
                    return
                await asyncio.sleep(chance.uniform(0.02, 0.1))

    async def _stream(self, stub: Any) -> AsyncIterator[Any]:
        if not self.events:
            request = asked(self.number, self.tokens)
            generates = isinstance(request, api.GenerateRequest)
            async for event in stub.Generate(request) if generates else stub.Chat(request):
                yield event
            return
        self.resumed += 1
        again = api.ResumeRequest(request_id=self.events[0].started.request_id)
        cursors = {event.choice: event.cursor for event in self.events}
        again.seen.extend(api.SeenChoice(choice=choice, cursor=cursor) for choice, cursor in cursors.items())
        async for told in stub.Resume(again):
            yield getattr(told, told.WhichOneof("event"))

    def _over(self) -> bool:
        choices = 2 if self.number % 8 == 0 else 1
        return choices == len({event.choice for event in self.events if event.HasField("done")})

    def said(self) -> list[Any]:
        """Every event by choice, without what says where it ran, what was cached there, and whether Redis was there to
        keep it."""
        kept = []
        for event in sorted(self.events, key=lambda event: int(event.choice)):  # stable: each choice in its order
            copy = type(event)()
            copy.CopyFrom(event)
            if copy.HasField("started"):
                copy.started.worker = copy.started.request_id = ""
                copy.started.resumable = False
            if copy.HasField("done"):
                copy.done.usage.cached_tokens = 0
            kept.append(copy)
        return kept

    @property
    def worker(self) -> str:
        """Who began to serve it."""
        return str(self.events[0].started.worker)

    def pause_after(self, moment: float) -> float | None:
        """The longest silence that ended after `moment`, seconds; None when it was over by then. Not the first one:
        what was on its way still arrives."""
        pauses = [t - before for before, t in itertools.pairwise(self.times) if t > moment]
        return max(pauses, default=None)

"""What stands before and after every generation, whichever API it came through.

the caller's credential still counts → its quota has room → its turn in the queue → the events, counted
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.door import Door
from shoal.router.access.key import Key
from shoal.router.admission import Admission, Claim
from shoal.router.call import Call
from shoal.router.inference.chat import Chat
from shoal.router.inference.generate import Generator
from shoal.router.inference.resume import Resumer
from shoal.router.limits.ledger import Scope
from shoal.router.limits.policy import Policies
from shoal.router.limits.quota import Quotas
from shoal.router.watch import Watch

_Event = TypeVar("_Event", bound=api.ChatResponse | api.GenerateResponse)

_USUAL_OUTPUT = 256  # tokens that a request is taken to want when it does not say, for its size in the queue
_MOST_OUTPUT = 1024  # more is not believed there
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Front:
    """Serves the calls that generate."""

    chat: Chat
    generator: Generator
    resumer: Resumer
    door: Door
    admission: Admission
    watch: Watch
    policies: Policies
    quotas: Quotas | None
    """None: nobody's use is counted."""

    def chats(self, asked: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of a turn. Raises as `Chat.events` does, and whatever stands before it."""
        said = sum(len(message.content) for message in asked.messages)
        return self._guarded(
            "chat", lambda call: self.chat.events(asked, call), call, self._claim(call, said, asked.limits)
        )

    def generations(self, asked: api.GenerateRequest, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """The same for raw generation."""
        said = len(asked.text) + len(asked.tokens.ids) * _CHARACTERS_PER_TOKEN
        return self._guarded(
            "text_completion",
            lambda call: self.generator.events(asked, call),
            call,
            self._claim(call, said, asked.limits),
        )

    def _claim(self, call: Call, characters: int, limits: api.Limits) -> Claim:
        """Its size is guessed: tokens are known once it is rendered, which is work of its own."""
        wanted = limits.max_tokens if limits.HasField("max_tokens") else _USUAL_OUTPUT
        cost = 1 + characters / _CHARACTERS_PER_TOKEN + min(wanted, _MOST_OUTPUT)
        return Claim(call.tenant, self.policies.of(call.tenant).share, cost)

    async def resumed(self, asked: api.ResumeRequest, call: Call) -> AsyncGenerator[api.ResumeResponse, None]:
        """The same for a request that goes on. What its earlier owners used was counted there."""
        claim = self._claim(call, 0, api.Limits())
        async with contextlib.aclosing(
            self._guarded("resume", lambda call: self.resumer.events(asked, call), call, claim)
        ) as events:
            async for event in events:
                if isinstance(event, api.ChatResponse):
                    yield api.ResumeResponse(chat=event)
                else:
                    yield api.ResumeResponse(generate=event)

    async def _guarded(
        self, operation: str, events: Callable[[Call], AsyncGenerator[_Event, None]], call: Call, claim: Claim
    ) -> AsyncGenerator[_Event, None]:
        async with contextlib.AsyncExitStack() as stack:
            watched = stack.enter_context(self.watch.request(operation, call))
            call = watched.call
            await stack.enter_async_context(self.door.served(call.caller))
            if self.quotas is not None:
                key = _limits_of(self.door.key_of(call.caller))
                allowance = await stack.enter_async_context(self.quotas.allowed(call.caller, call.work_id, key))
                call = replace(call, allowance=allowance)
            watched.admitted(await stack.enter_async_context(self.admission.admitted(claim)))
            opened = await stack.enter_async_context(contextlib.aclosing(events(call)))
            generated: dict[int, int] = {}
            before: dict[int, int] = {}  # of a request that goes on: tokens that the client had already
            async for event in opened:
                used = event.cursor.offset - before.setdefault(event.choice, event.cursor.offset)
                if used != generated.get(event.choice):
                    generated[event.choice] = used
                    await call.allowance.output(sum(generated.values()))
                watched.saw(event)
                yield event


def _limits_of(key: Key | None) -> Scope | None:
    """A key's own limits; None when it has none."""
    if key is None or not (key.requests_per_minute or key.tokens_per_minute or key.concurrent):
        return None
    return Scope(key.id, key.requests_per_minute, key.tokens_per_minute, key.concurrent)

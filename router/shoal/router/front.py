"""What stands before and after every generation, whichever API it came through.

the caller's credential still counts → its quota has room → what it says may enter → its turn in the
queue → recorded → the events, counted, as they may leave
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.key import Key
from shoal.router.admission import Admission, Claim
from shoal.router.audit.recording import Asked, Recording
from shoal.router.audit.visit import records_itself
from shoal.router.call import Call
from shoal.router.errors import AuditError, ContentError
from shoal.router.inference.chat import Chat
from shoal.router.inference.generate import Generator
from shoal.router.inference.once import Once
from shoal.router.inference.resume import Resumer
from shoal.router.limits.ledger import Scope
from shoal.router.protection import Protection
from shoal.router.watch import Watch
from shoal.wire.status import status_of

_Asked = TypeVar("_Asked", bound=Asked)
_Event = TypeVar("_Event", bound=api.ChatResponse | api.GenerateResponse)

_USUAL_OUTPUT = 256  # tokens that a request is taken to want when it does not say, for its size in the queue
_MOST_OUTPUT = 1024  # more is not believed there
_CHARACTERS_PER_TOKEN = 4
_METHODS = {
    "chat": "InferenceService/Chat",
    "text_completion": "InferenceService/Generate",
    "resume": "InferenceService/Resume",
}


@dataclass(frozen=True, slots=True)
class Front:
    """Serves the calls that generate."""

    chat: Chat
    generator: Generator
    resumer: Resumer
    once: Once
    protection: Protection
    admission: Admission
    watch: Watch

    def chats(self, asked: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of a turn. Raises as `Chat.events` does, and whatever stands before it."""
        claim = self._claim(call, sum(len(message.content) for message in asked.messages), asked.limits)
        return self._guarded(
            "chat",
            asked,
            claim,
            call,
            lambda asked, call: self.once.events(asked, call, lambda call: self.chat.events(asked, call)),
        )

    def repeated(self, asked: api.ChatRequest, first: str, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of a turn that was asked for before, in the request `first`: this one asks for the same."""
        claim = self._claim(call, 0, asked.limits)

        def again(asked: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
            events: Any = self.resumer.events(api.ResumeRequest(request_id=first), call)  # a turn's, as `first` was one
            turn: AsyncGenerator[api.ChatResponse, None] = events
            return turn

        return self._guarded("chat", asked, claim, call, again)

    def generations(self, asked: api.GenerateRequest, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """The same for raw generation."""
        said = len(asked.text) + len(asked.tokens.ids) * _CHARACTERS_PER_TOKEN
        claim = self._claim(call, said, asked.limits)
        return self._guarded(
            "text_completion",
            asked,
            claim,
            call,
            lambda asked, call: self.once.events(asked, call, lambda call: self.generator.events(asked, call)),
        )

    async def resumed(self, asked: api.ResumeRequest, call: Call) -> AsyncGenerator[api.ResumeResponse, None]:
        """The same for a request that goes on. What its earlier owners used was counted there."""
        claim = self._claim(call, 0, api.Limits())
        going = self._guarded("resume", asked, claim, call, self.resumer.events)
        async with contextlib.aclosing(going) as events:
            async for event in events:
                if isinstance(event, api.ChatResponse):
                    yield api.ResumeResponse(chat=event)
                else:
                    yield api.ResumeResponse(generate=event)

    def _claim(self, call: Call, characters: int, limits: api.Limits) -> Claim:
        """Its size is guessed: tokens are known once it is rendered, which is work of its own."""
        wanted = limits.max_tokens if limits.HasField("max_tokens") else _USUAL_OUTPUT
        cost = 1 + characters / _CHARACTERS_PER_TOKEN + min(wanted, _MOST_OUTPUT)
        return Claim(call.tenant, self.protection.policies.of(call.tenant).share, cost)

    async def _guarded(
        self,
        operation: str,
        asked: _Asked,
        claim: Claim,
        call: Call,
        events: Callable[[_Asked, Call], AsyncGenerator[_Event, None]],
    ) -> AsyncGenerator[_Event, None]:
        """Each of what stands before, in order; undone in reverse, however it ends."""
        async with contextlib.AsyncExitStack() as stack:
            watched = stack.enter_context(self.watch.request(operation, call))
            call = watched.call
            recorded = await stack.enter_async_context(self._recording(_METHODS[operation], asked, call))
            await stack.enter_async_context(self.protection.door.served(call.caller))
            if self.protection.quotas is not None:
                key = _limits_of(self.protection.door.key_of(call.caller))
                allowed = self.protection.quotas.allowed(call.caller, call.work_id, key)
                call = replace(call, allowance=await stack.enter_async_context(allowed))
            stack.enter_context(self._striking(call))
            policy, safeguards = self.protection.policies.of(call.tenant), self.protection.safeguards
            call, judge = replace(call, remembers=policy.response_cache and not policy.redact), safeguards.judge(policy)
            if guarded := safeguards.active(policy):
                recorded.asked = asked = await safeguards.incoming(asked, policy)
                redact = (lambda text: safeguards.redacted(text, policy)) if policy.redact else None
                call = replace(call, redact=redact, judge=judge.check)
            watched.admitted(await stack.enter_async_context(self.admission.admitted(claim)))
            await recorded.accepted()
            opened = await stack.enter_async_context(contextlib.aclosing(events(asked, call)))
            if guarded:
                opened = await stack.enter_async_context(
                    contextlib.aclosing(safeguards.outgoing(opened, policy, judge))
                )
            count = _Count(resumed=operation == "resume")
            async for event in opened:
                self.protection.door.require(call.caller)  # whatever became of its being told to end
                recorded.heard(event)
                if count.grew(event):
                    await call.allowance.output(count.total)
                watched.saw(event)
                yield event

    @contextlib.contextmanager
    def _striking(self, call: Call) -> Iterator[None]:
        """Who is refused too often, for what he says or for what he makes the model say, is held off."""
        try:
            yield
        except ContentError:
            if self.protection.quotas is not None:
                self.protection.quotas.struck(call.caller)
            raise

    @contextlib.asynccontextmanager
    async def _recording(self, method: str, asked: Asked, call: Call) -> AsyncGenerator[Recording, None]:
        """The audit trail hears of it, however it ends."""
        how = self.protection.policies.of(call.tenant).audit
        model = str(getattr(asked, "model", "")) or self.chat.settings.model
        recording = Recording(self.protection.trail, call.caller, method, call.request_id, how, asked, model)
        records_itself()
        try:
            yield recording
        except BaseException as error:
            status = status_of(asyncio.CancelledError() if isinstance(error, GeneratorExit) else error)
            with contextlib.suppress(AuditError):  # the error is what is told
                await asyncio.shield(recording.ended(f"{status.code.name} {status.reason}"))
            raise
        else:
            await recording.ended("OK")


class _Count:
    """Tokens that were generated while we looked on: of a request that goes on, those since its first event here."""

    def __init__(self, *, resumed: bool) -> None:
        self._resumed = resumed
        self._first: dict[int, int] = {}
        self._latest: dict[int, int] = {}

    def grew(self, event: api.ChatResponse | api.GenerateResponse) -> bool:
        """Whether the event brings tokens."""
        offset = event.cursor.offset
        first = self._first.setdefault(event.choice, offset if self._resumed else 0)
        grown = offset != self._latest.get(event.choice, first)
        self._latest[event.choice] = offset
        return grown

    @property
    def total(self) -> int:
        """Of all choices."""
        return sum(latest - self._first[choice] for choice, latest in self._latest.items())


def _limits_of(key: Key | None) -> Scope | None:
    """A key's own limits; None when it has none."""
    if key is None or not (key.requests_per_minute or key.tokens_per_minute or key.concurrent or key.max_context):
        return None
    return Scope(key.id, key.requests_per_minute, key.tokens_per_minute, key.concurrent, key.max_context)

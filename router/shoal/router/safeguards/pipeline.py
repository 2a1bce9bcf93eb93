"""The hooks before a prompt enters and on what streams out, as each tenant's policy wants them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.errors import ContentError, FieldError
from shoal.router.limits.policy import Policy
from shoal.router.safeguards.filter import Filter, Rules
from shoal.router.safeguards.moderation import Moderator

_LONG = 64 * 1024  # bytes of a request from which on it is looked at beside the event loop
_BLOCK = 400  # characters that are judged together; they wait until they were

_Asked = TypeVar("_Asked", bound=api.ChatRequest | api.GenerateRequest | api.ResumeRequest)
_Event = TypeVar("_Event", bound=api.ChatResponse | api.GenerateResponse)


class Judge:
    """Says of one request's answer whether it may be told and kept; what was judged once is not shown again."""

    def __init__(self, rules: Rules, moderator: Moderator | None) -> None:
        """`rules`: what is denied; `moderator` None: nobody classifies."""
        self._rules, self.moderator = rules, moderator
        self._passed = ""

    async def check(self, text: str) -> None:
        """Raises ContentError, ModerationAwayError."""
        self._rules.whole(text, "the answer")
        await self.classify(text)

    async def classify(self, text: str) -> None:
        """The same by the classifier alone."""
        if self.moderator is not None and text != self._passed:
            await self.moderator.check(text, "the answer")
            self._passed = text


@lru_cache(maxsize=256)
def rules_of(redact: tuple[str, ...], deny: tuple[str, ...]) -> Rules:
    """Compiled once per policy."""
    return Rules(redact, deny)


@dataclass(frozen=True, slots=True)
class Safeguards:
    """Applies policies. `moderator` None: nobody classifies."""

    moderator: Moderator | None = None

    def active(self, policy: Policy) -> bool:
        """Whether anything is looked at."""
        return bool(policy.redact or policy.deny or (policy.moderate and self.moderator is not None))

    async def incoming(self, asked: _Asked, policy: Policy) -> _Asked:
        """The request as it may enter. Raises ContentError, ModerationAwayError, FieldError; changes nothing given."""
        rules = rules_of(policy.redact, policy.deny)
        if asked.ByteSize() < _LONG:
            clean, said = _cleaned(asked, rules)
        else:
            clean, said = await asyncio.to_thread(_cleaned, asked, rules)
        if policy.moderate and self.moderator is not None:
            await self.moderator.check(said, "the prompt")
        return clean

    def judge(self, policy: Policy) -> Judge:
        """For the answer of one request."""
        return Judge(rules_of((), policy.deny), self.moderator if policy.moderate else None)

    async def outgoing(
        self, events: AsyncGenerator[_Event, None], policy: Policy, judge: Judge
    ) -> AsyncGenerator[_Event, None]:
        """The events as they may leave, without ids and log-probabilities, which would tell what was taken out.

        Raises as `incoming`, before anything denied or flagged has left.
        """
        streams: dict[tuple[int, str, int], _Stream] = {}
        async for event in events:
            place = _place(event)
            mine = [key for key in streams if key[0] == event.choice]
            if mine and event.WhichOneof("event") == "warning":
                streams[mine[0]].aside.append(event)  # in the middle of a text, which goes on: nothing is known yet
                continue
            for key in mine:
                if key != place:
                    async for held in streams.pop(key).end():
                        yield held
            if place is None:
                yield _without_result(event, policy)
                continue
            if place not in streams:
                streams[place] = _Stream(Filter(rules_of(policy.redact, policy.deny), "the answer"), judge)
            async for piece in streams[place].push(event):
                yield piece

    def redacted(self, value: Any, policy: Policy) -> Any:
        """A JSON value with every text in it redacted, to be kept. What is denied in it was refused before."""
        rules = rules_of(policy.redact, ())
        return _in_json(value, rules) if rules else value


def _cleaned(asked: _Asked, rules: Rules) -> tuple[_Asked, str]:
    """The request without what may not be in it, and what it says. Raises ContentError and FieldError."""
    if isinstance(asked, api.ResumeRequest):
        raise ContentError("under your tenant's safeguards a stream cannot be resumed: ask anew")
    clean = type(asked)()
    clean.CopyFrom(asked)  # type: ignore[arg-type]  # of its own type
    if isinstance(clean, api.ChatRequest):
        for message in clean.messages:
            message.content = rules.whole(message.content, "the prompt")
        for tool in clean.tools:
            tool.description = rules.whole(tool.description, "a tool")
            tool.parameters = _cleaned_schema(tool.parameters, rules)
        told = [message.content for message in clean.messages] + [tool.description for tool in clean.tools]
    else:
        if clean.HasField("tokens"):
            raise FieldError("tokens", "cannot be looked into under your tenant's safeguards: send text")
        clean.text = rules.whole(clean.text, "the prompt")
        told = [clean.text]
    clean.limits.stop[:] = [rules.whole(stop, "a stop text") for stop in clean.limits.stop]
    asked_for = clean.response_format
    if asked_for.schema or asked_for.description:
        asked_for.description = rules.whole(asked_for.description, "response_format")
        asked_for.schema = _cleaned_schema(asked_for.schema, rules)
        told.append(asked_for.description)
    return clean, "\n".join(text for text in told if text)


def _cleaned_schema(text: str, rules: Rules) -> str:
    """JSON with its texts redacted; what is none is checked as text and left for whoever reads it to refuse."""
    if not text:
        return text
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        return rules.whole(text, "a schema")
    clean = _in_json(schema, rules)
    return text if clean == schema else json.dumps(clean, ensure_ascii=False)


def _in_json(value: Any, rules: Rules) -> Any:
    if isinstance(value, str):
        return rules.whole(value, "the prompt")
    if isinstance(value, list):
        return [_in_json(item, rules) for item in value]
    if isinstance(value, dict):
        return {name: _in_json(item, rules) for name, item in value.items()}
    return value


@dataclass(slots=True)
class _Stream:
    """The pieces of one message or call."""

    filter: Filter
    judge: Judge
    aside: list[Any] = field(default_factory=list)
    """Events that came meanwhile and follow at the end."""
    _latest: Any = None
    _unjudged: str = ""
    _judged: list[str] = field(default_factory=list)

    async def push(self, event: Any) -> AsyncGenerator[Any, None]:
        self._latest = event
        clean = self.filter.push(_text_of(event))
        if self.judge.moderator is not None:
            self._unjudged += clean
            clean = await self._judge() if len(self._unjudged) >= _BLOCK else ""
        if clean or _opens(event):
            yield _with_text(event, clean)

    async def end(self) -> AsyncGenerator[Any, None]:
        clean = self.filter.finish()
        if self.judge.moderator is not None:
            self._unjudged += clean
            clean = await self._judge()
        if clean:
            held = _with_text(self._latest, clean)
            if isinstance(held, api.ChatResponse) and held.HasField("tool_call"):
                held.tool_call.ClearField("name")  # it was told when the call opened
                held.tool_call.ClearField("id")
            yield held
        for event in self.aside:
            yield event

    async def _judge(self) -> str:
        if self._unjudged:
            await self.judge.classify("".join([*self._judged, self._unjudged]))
        self._judged.append(self._unjudged)
        clean, self._unjudged = self._unjudged, ""
        return clean


def _place(event: api.ChatResponse | api.GenerateResponse) -> tuple[int, str, int] | None:
    """Which stream of text an event belongs to; None for one that is no text."""
    kind = event.WhichOneof("event")
    if isinstance(event, api.GenerateResponse):
        return (event.choice, "tokens", 0) if kind == "tokens" else None
    match kind:
        case "text":
            return event.choice, kind, event.text.message
        case "reasoning":
            return event.choice, kind, event.reasoning.message
        case "tool_call":
            return event.choice, kind, event.tool_call.index
        case _:
            return None


def _text_of(event: Any) -> str:
    part = getattr(event, event.WhichOneof("event"))
    return str(part.arguments if isinstance(part, api.ToolCallDelta) else part.text)


def _opens(event: Any) -> bool:
    """Whether it says something besides its text."""
    return event.WhichOneof("event") == "tool_call" and bool(event.tool_call.name)


def _with_text(event: Any, text: str) -> Any:
    changed = type(event)()
    changed.CopyFrom(event)
    part = getattr(changed, changed.WhichOneof("event"))
    if isinstance(part, api.ToolCallDelta):
        part.arguments = text
    else:
        part.text = text
    for name in _telling(part):
        part.ClearField(name)
    return changed


def _telling(part: Any) -> Iterator[str]:
    """Fields that would tell the tokens."""
    return (name for name in ("ids", "logprobs", "likeliest") if name in part.DESCRIPTOR.fields_by_name)


def _without_result(event: Any, policy: Policy) -> Any:
    """An event that is no text; what a tool of the server gave is redacted as a whole."""
    if isinstance(event, api.ChatResponse) and event.HasField("tool_result"):
        changed = api.ChatResponse()
        changed.CopyFrom(event)
        changed.tool_result.content = rules_of(policy.redact, policy.deny).whole(event.tool_result.content, "a result")
        return changed
    return event

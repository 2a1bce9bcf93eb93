"""The events of a turn as a chat completion: in pieces, or whole. The whole is what the pieces add up to.

Reasoning is told as `reasoning_content`, which is what clients of other servers of such models read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.proto.v1 import inference_pb2 as api

FINISH = {
    api.FINISH_REASON_STOP: "stop",
    api.FINISH_REASON_LENGTH: "length",
    api.FINISH_REASON_TOOL_CALL: "tool_calls",
    api.FINISH_REASON_CANCELLED: "stop",
}
"""OpenAI's words for why generation ended."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every piece begins with."""

    id: str
    model: str
    created: int
    """Unix time, seconds."""


@dataclass(slots=True)
class _Choice:
    """What is known of one answer."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    """Numbers of calls as clients count them, which leave out what the server runs, by ours."""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    message: int | None = None
    """The message that the latest text belongs to."""
    begun: bool = False


class ChatAnswer:
    """Reads the events of one request, of all its choices."""

    def __init__(self, head: Head, *, formatted: bool, logprobs: bool) -> None:
        """`formatted`: the answer has to have a form, so words beside it are told as reasoning."""
        self._head, self._formatted, self._logprobs = head, formatted, logprobs
        self._choices: dict[int, _Choice] = {}
        self._usage = api.Usage()
        self._warnings: list[dict[str, str]] = []

    def pieces(self, event: api.ChatResponse) -> list[dict[str, Any]]:
        """The chunks that an event makes."""
        choice = self._choices.setdefault(event.choice, _Choice())
        made = []
        if not choice.begun:
            choice.begun = True
            made.append(self._chunk(event.choice, {"role": "assistant", "content": ""}))
        match event.WhichOneof("event"):
            case "reasoning":
                choice.reasoning.append(event.reasoning.text)
                made.append(self._chunk(event.choice, {"reasoning_content": event.reasoning.text}))
            case "text":
                made.append(self._text(event.choice, choice, event.text))
            case "tool_call":
                made += self._tool_call(event.choice, choice, event.tool_call)
            case "warning":
                self._warnings.append({"code": event.warning.code, "message": event.warning.message})
            case "done":
                choice.finish = FINISH[event.done.finish_reason]
                add_usage(self._usage, event.done.usage)
                made.append(self._chunk(event.choice, {}, finish=choice.finish))
        return made

    def usage_piece(self) -> dict[str, Any]:
        """The chunk with the usage, which comes last and has no choices."""
        return {**self._common("chat.completion.chunk"), "choices": [], "usage": usage_of(self._usage)}

    def whole(self) -> dict[str, Any]:
        """The completion, once every choice is done."""
        choices = [self._whole(index, choice) for index, choice in sorted(self._choices.items())]
        body = {**self._common("chat.completion"), "choices": choices, "usage": usage_of(self._usage)}
        if self._warnings:
            body["warnings"] = self._warnings
        return body

    def _text(self, index: int, choice: _Choice, text: api.TextDelta) -> dict[str, Any]:
        if self._formatted and text.channel == "commentary":
            choice.reasoning.append(text.text)
            return self._chunk(index, {"reasoning_content": text.text})
        apart = "\n\n" if choice.content and choice.message != text.message else ""
        choice.message = text.message
        choice.content.append(apart + text.text)
        logprobs = [logprob_of(token) for token in text.logprobs]
        choice.logprobs += logprobs
        return self._chunk(index, {"content": apart + text.text}, logprobs)

    def _tool_call(self, index: int, choice: _Choice, call: api.ToolCallDelta) -> list[dict[str, Any]]:
        if call.id:
            if call.runs_on_server:
                return []
            choice.numbers[call.index] = len(choice.calls)
            function = {"name": call.name, "arguments": call.arguments}
            choice.calls.append({"id": call.id, "type": "function", "function": function})
            first = {"index": choice.numbers[call.index], **choice.calls[-1], "function": dict(function)}
            return [self._chunk(index, {"tool_calls": [first]})]
        if call.index not in choice.numbers:
            return []  # the server runs it
        number = choice.numbers[call.index]
        choice.calls[number]["function"]["arguments"] += call.arguments
        piece = {"index": number, "function": {"arguments": call.arguments}}
        return [self._chunk(index, {"tool_calls": [piece]})]

    def _common(self, kind: str) -> dict[str, Any]:
        head = self._head
        return {"id": head.id, "object": kind, "created": head.created, "model": head.model}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[dict[str, Any]] = (), finish: str | None = None
    ) -> dict[str, Any]:
        told = {"content": list(logprobs), "refusal": None} if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}
        chunk = {**self._common("chat.completion.chunk"), "choices": [choice]}
        if finish is not None and self._warnings:
            chunk["warnings"] = self._warnings
        return chunk

    def _whole(self, index: int, choice: _Choice) -> dict[str, Any]:
        content = "".join(choice.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
            "annotations": [],
        }
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = choice.calls
        logprobs = {"content": choice.logprobs, "refusal": None} if self._logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish or "stop"}


def add_usage(total: api.Usage, usage: api.Usage) -> None:
    """Add what one more choice used: the prompt of all is the same one."""
    total.input_tokens = max(total.input_tokens, usage.input_tokens)
    total.cached_tokens = max(total.cached_tokens, usage.cached_tokens)
    total.output_tokens += usage.output_tokens
    total.reasoning_tokens += usage.reasoning_tokens


def usage_of(usage: api.Usage) -> dict[str, Any]:
    """Usage in the words of completions."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def logprob_of(token: api.TokenLogprob) -> dict[str, Any]:
    """One token with its likeliest rivals."""
    return {**_likely(token), "top_logprobs": [_likely(rival) for rival in token.likeliest]}


def _likely(token: api.TokenLogprob | api.LikelyToken) -> dict[str, Any]:
    """Bytes are told beside the text, which has U+FFFD where a token ends inside a character."""
    return {
        "token": token.bytes.decode(errors="replace"),
        "logprob": max(token.logprob, -9999.0),  # JSON has no infinity; this is how OpenAI says "never"
        "bytes": list(token.bytes),
    }

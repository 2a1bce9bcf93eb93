"""`POST /v1/completions`: raw continuation of text or token ids; no chat format is added or removed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.http.body import parse
from shoal.router.http.chat.answer import FINISH, Head, add_usage, usage_of
from shoal.router.http.chat.request import StreamOptions
from shoal.router.http.errors import ParameterError, renaming
from shoal.router.http.gate import Gate
from shoal.router.http.reply import DONE, Reply, Stream, error_event, to_event
from shoal.router.http.rim import Asked
from shoal.router.http.sampling import Count, Positive, Sampled, limits_of, sampling_of
from shoal.router.http.tools import rename_format, response_format

_DEFAULT_TOKENS = 16  # OpenAI's


class CompletionBody(Sampled):
    """A raw completion of one prompt."""

    model: str
    prompt: str | list[str] | list[Count] | list[list[Count]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    stop: str | list[str] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    response_format: dict[str, Any] | None = None
    """As in chat completions; not in OpenAI's API."""
    user: str | None = None
    best_of: int | None = None
    suffix: str | None = None


def generation_of(body: CompletionBody, request_id: str) -> api.GenerateRequest:
    """The generation that is asked for. Raises ParameterError."""
    if body.suffix is not None:
        raise ParameterError("This model cannot fill in the middle.", "suffix", "unsupported_parameter")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ParameterError("'best_of' is not supported beyond 'n'.", "best_of", "unsupported_value")
    request = api.GenerateRequest(
        request_id=request_id,
        model=body.model,
        sampling=sampling_of(body),
        limits=limits_of(body, body.max_tokens or _DEFAULT_TOKENS, body.stop),
        logprobs=body.logprobs is not None,
        top_logprobs=body.logprobs or 0,
        n=body.n or 1,
        response_format=response_format(body.response_format) if body.response_format is not None else None,
    )
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt and isinstance(prompt[0], int):
        if body.echo:
            raise ParameterError("'echo' needs a prompt of text.", "echo", "unsupported_value")
        request.tokens.ids.extend(prompt)
    else:
        raise ParameterError("Give one prompt: several in one request are not supported.", "prompt")
    return request


@dataclass(slots=True)
class _Choice:
    text: str = ""
    finish: str | None = None
    tokens: list[api.TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)


class CompletionAnswer:
    """Reads the events of one generation, of all its choices. The whole is what the pieces add up to."""

    def __init__(self, head: Head, *, echo: str, logprobs: bool) -> None:
        """`echo` is told before each choice's text."""
        self._head, self._echo, self._logprobs = head, echo, logprobs
        self._choices: dict[int, _Choice] = {}
        self._usage = api.Usage()

    def pieces(self, event: api.GenerateResponse) -> list[dict[str, Any]]:
        """The chunks that an event makes."""
        choice = self._choices.setdefault(event.choice, _Choice())
        match event.WhichOneof("event"):
            case "started":
                choice.text = self._echo
                return [self._chunk(event.choice, self._echo)] if self._echo else []
            case "tokens":
                offset = len(choice.text)
                choice.text += event.tokens.text
                new = list(event.tokens.likeliest)
                choice.tokens += new
                choice.offsets += [offset] * len(new)
                return [self._chunk(event.choice, event.tokens.text, new, offset)]
            case "done":
                choice.finish = FINISH[event.done.finish_reason]
                add_usage(self._usage, event.done.usage)
                return [self._chunk(event.choice, "", finish=choice.finish)]
        return []

    def usage_piece(self) -> dict[str, Any]:
        """The chunk with the usage, which comes last and has no choices."""
        return {**self._common(), "choices": [], "usage": usage_of(self._usage)}

    def whole(self) -> dict[str, Any]:
        """The completion, once every choice is done."""
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": _logprobs(choice.tokens, choice.offsets) if self._logprobs else None,
                "finish_reason": choice.finish or "stop",
            }
            for index, choice in sorted(self._choices.items())
        ]
        return {**self._common(), "choices": choices, "usage": usage_of(self._usage)}

    def _chunk(
        self,
        index: int,
        text: str,
        tokens: list[api.TokenLogprob] | None = None,
        offset: int = 0,
        finish: str | None = None,
    ) -> dict[str, Any]:
        told = _logprobs(tokens, [offset] * len(tokens)) if tokens and self._logprobs else None
        choice = {"index": index, "text": text, "logprobs": told, "finish_reason": finish}
        return {**self._common(), "choices": [choice]}

    def _common(self) -> dict[str, Any]:
        head = self._head
        return {"id": head.id, "object": "text_completion", "created": head.created, "model": head.model}


class Completions:
    """Serves the method over a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def create(self, asked: Asked, call: Call) -> Reply | Stream:
        """Whole or in pieces. Raises WireError."""
        body = parse(CompletionBody, asked.body)
        request = generation_of(body, call.request_id)
        request.idempotency_key = call.idempotency_key
        head = Head(id=f"cmpl-{call.work_id}", model=body.model, created=int(time.time()))
        answer = CompletionAnswer(head, echo=request.text if body.echo else "", logprobs=body.logprobs is not None)
        if body.stream:
            include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            return Stream(self._pieces(request, call, answer, include_usage), error_event)
        with renaming(_rename):
            async with contextlib.aclosing(self._gate.generations(request, call)) as events:
                async for event in events:
                    answer.pieces(event)
        return Reply(answer.whole())

    async def _pieces(
        self, request: api.GenerateRequest, call: Call, answer: CompletionAnswer, include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        with renaming(_rename):
            async with contextlib.aclosing(self._gate.generations(request, call)) as events:
                async for event in events:
                    for piece in answer.pieces(event):
                        yield to_event(piece)
        if include_usage:
            yield to_event(answer.usage_piece())
        yield DONE


def _rename(field: str) -> str:
    return "prompt" if field in ("tokens", "messages") else rename_format(field)


def _logprobs(tokens: list[api.TokenLogprob], offsets: list[int]) -> dict[str, Any]:
    """In the shape of completions: parallel lists. A token that is no text by itself is told as U+FFFD."""

    def text(token: api.TokenLogprob | api.LikelyToken) -> str:
        return token.bytes.decode(errors="replace")

    return {
        "tokens": [text(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{text(rival): rival.logprob for rival in token.likeliest} for token in tokens],
        "text_offset": offsets,
    }

"""`POST /v1/chat/completions`: the request as JSON, and as the turn that it asks for. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.chat.messages import read_messages
from shoal.router.http.content import a_string, an_object, one_of
from shoal.router.http.errors import ParameterError
from shoal.router.http.sampling import Count, Positive, Sampled, Strict, limits_of, sampling_of
from shoal.router.http.tools import effort_of, function_tool, rename_format, response_format, tool_choice

_NOT_HERE = ("audio", "functions", "function_call", "web_search_options", "moderation")
_MESSAGE = re.compile(r"messages\[(\d+)\]")
_TOOL = re.compile(r"tools\[(\d+)\]\.?")


class StreamOptions(Strict):
    """How an answer in pieces is told."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; nothing is padded."""


class ChatBody(Sampled):
    """A chat completion. What OpenAI knows and has no meaning here is accepted, unless it would change the answer."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning_budget: Count | None = None
    """Most tokens of reasoning; not in OpenAI's API."""
    server_tools: list[str] | None = None
    """Tools that run on the server, by name; not in OpenAI's API."""
    # Accepted without effect.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prediction: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    # Known, and refused unless null.
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request asks for."""

    request: api.ChatRequest
    stream: bool
    include_usage: bool
    formatted: bool
    """Whether the answer has to have a form, so that nothing else may stand in its text."""


def turn_of(body: ChatBody, request_id: str) -> Turn:
    """The turn that is asked for. Raises ParameterError."""
    _refuse(body)
    messages, _ = read_messages(body.messages)
    effort, budget = effort_of(body.reasoning_effort, "reasoning_effort")
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    choice = None
    if body.tool_choice is not None:
        choice, tools = tool_choice(body.tool_choice, tools, "tool_choice")
    answer = response_format(body.response_format) if body.response_format is not None else None
    request = api.ChatRequest(
        messages=messages,
        request_id=request_id,
        model=body.model,
        reasoning_effort=effort,
        reasoning_budget=budget if body.reasoning_budget is None else body.reasoning_budget,
        sampling=sampling_of(body),
        limits=limits_of(body, body.max_completion_tokens or body.max_tokens, body.stop),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=answer,
        n=body.n or 1,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
        server_tools=body.server_tools or (),
    )
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    formatted = answer is not None and answer.kind != api.RESPONSE_FORMAT_KIND_TEXT
    return Turn(request, bool(body.stream), include_usage, formatted)


def rename(field: str, places: Sequence[str] = ()) -> str:
    """What a caller calls one of our fields. `places` says where each of our messages came from.

    >>> rename("messages[1].content", ["messages[0]", "messages[0]"]), rename("sampling.top_p")
    ('messages[0].content', 'top_p')
    """
    if (found := _MESSAGE.match(field)) and int(found[1]) < len(places):
        return places[int(found[1])] + field[found.end() :]
    if found := _TOOL.match(field):
        return f"tools[{found[1]}].function.{field[found.end() :]}".rstrip(".")
    return rename_format(field)


def _refuse(body: ChatBody) -> None:
    """Raises ParameterError for what would be silently ignored otherwise."""
    for name in _NOT_HERE:
        if getattr(body, name) is not None:
            instead = "; use 'tools'" if name.startswith("function") else ""
            raise ParameterError(f"Unsupported parameter: '{name}'{instead}.", name, "unsupported_parameter")
    if body.modalities is not None and body.modalities != ["text"]:
        raise ParameterError("This model answers with text only.", "modalities", "unsupported_value")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ParameterError("Give 'max_completion_tokens' or 'max_tokens', not both.", "max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise ParameterError("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ParameterError("'stream_options' needs 'stream' to be true.", "stream_options")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise ParameterError("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")


def _tool(tool: dict[str, Any], place: str) -> api.Tool:
    one_of(a_string(tool, "type", place), ("function",), f"{place}.type")
    return function_tool(an_object(tool.get("function"), f"{place}.function"), f"{place}.function")

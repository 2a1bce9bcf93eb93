"""`POST /v1/responses`: the request as JSON, and as the turn that it asks for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.content import a_string, an_object, one_of
from shoal.router.http.errors import ParameterError
from shoal.router.http.sampling import Count, Positive, Sampled, Strict, limits_of, rename_sampling, sampling_of
from shoal.router.http.tools import effort_of, function_tool, grammar_format, json_schema_format, tool_choice

LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (
    LOGPROBS, "reasoning.encrypted_content", "code_interpreter_call.outputs", "web_search_call.action.sources",
    "web_search_call.results", "file_search_call.results", "message.input_image.image_url",
    "computer_call_output.output.image_url",
)  # fmt: skip
_NOT_HERE = ("conversation", "prompt", "context_management", "moderation", "image", "access_programs")
_SERVER_TOOLS = {"web_search": "browser", "web_search_preview": "browser", "code_interpreter": "python"}
_FUNCTION_TOOL = frozenset({"type", "name", "description", "parameters", "strict"})
_PLACE = re.compile(r"(messages|tools)\[(\d+)\]")


class Reasoning(Strict):
    """How long the model may think. Summaries are not made: the reasoning itself is told."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn"] | None = None
    mode: Literal["standard"] | None = None


class Text(Strict):
    """What the answer looks like."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Strict):
    """How an answer in pieces is told."""

    include_obfuscation: bool | None = None


class ResponseBody(Sampled):
    """A response. What OpenAI knows and has no meaning here is accepted, unless it would change the answer."""

    model: str
    input: str | list[Any]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    max_output_tokens: Positive | None = None
    max_tool_calls: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    reasoning_budget: Count | None = None
    """Most tokens of reasoning; not in OpenAI's API."""
    stop: str | list[str] | None = None
    """Not in OpenAI's API."""
    text: Text | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    # Accepted without effect.
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None
    # Known, and refused unless null.
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    image: Any = None
    access_programs: Any = None


def turn_of(body: ResponseBody, messages: Sequence[api.Message], request_id: str) -> api.ChatRequest:
    """The turn that is asked for, in which `messages` are said. Raises ParameterError."""
    _refuse(body)
    reasoning = body.reasoning or Reasoning()
    effort, budget = effort_of(reasoning.effort, "reasoning.effort")
    tools, server_tools = _tools(body.tools or ())
    choice = None
    if body.tool_choice is not None:
        choice, tools = tool_choice(_mapped_choice(body.tool_choice), tools, "tool_choice")
    return api.ChatRequest(
        messages=messages,
        request_id=request_id,
        model=body.model,
        reasoning_effort=effort,
        reasoning_budget=budget if body.reasoning_budget is None else body.reasoning_budget,
        sampling=sampling_of(body),
        limits=limits_of(body, body.max_output_tokens, body.stop),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text.format) if body.text is not None and body.text.format is not None else None,
        logprobs=LOGPROBS in (body.include or ()) or bool(body.top_logprobs),
        top_logprobs=body.top_logprobs or 0,
        server_tools=server_tools,
        max_tool_calls=body.max_tool_calls,
        context_policy=api.CONTEXT_POLICY_DROP_OLDEST if body.truncation == "auto" else api.CONTEXT_POLICY_REFUSE,
        only_these_tools=True,  # earlier responses' tools are not this one's
    )


def rename(field: str, places: Sequence[str] = ()) -> str:
    """What a caller calls one of our fields. `places` says where each of our messages came from.

    >>> rename("messages[0].content", ["input[3]"]), rename("limits.max_tokens"), rename("tools[1].name")
    ('input[3].content', 'max_output_tokens', 'tools[1].name')
    """
    found = _PLACE.match(field)
    if found is not None and found[1] == "messages":
        place = places[int(found[2])] if int(found[2]) < len(places) else "input"
        return place + field[found.end() :] if place.startswith("input[") else place
    if field == "messages":
        return "input"
    if field.startswith("response_format"):
        return field.replace("response_format", "text.format", 1)
    if field.startswith("server_tools"):
        return "tools"
    return {"limits.max_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort"}.get(
        field, rename_sampling(field)
    )


def _refuse(body: ResponseBody) -> None:
    """Raises ParameterError for what would be silently ignored otherwise."""
    for name in _NOT_HERE:
        if getattr(body, name) is not None:
            raise ParameterError(f"Unsupported parameter: '{name}'.", name, "unsupported_parameter")
    for index, name in enumerate(body.include or ()):
        one_of(name, _INCLUDED, f"include[{index}]")
    if body.background and body.store is False:
        raise ParameterError("A response in the background has to be stored.", "store")


def _tools(tools: Sequence[Mapping[str, Any]]) -> tuple[list[api.Tool], list[str]]:
    """Functions that the caller runs, and tools that run on the server, by the names they have there."""
    functions, server = [], []
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        kind = a_string(tool, "type", place)
        if kind == "function":
            functions.append(function_tool({k: v for k, v in tool.items() if k in _FUNCTION_TOOL}, place))
        elif kind == "mcp":
            server.append(a_string(tool, "server_label", place))
        elif (name := _SERVER_TOOLS.get(re.sub(r"_\d{4}_\d{2}_\d{2}$", "", kind))) is not None:
            server.append(name)
        else:
            known = "'function', 'mcp', 'web_search' and 'code_interpreter'"
            raise ParameterError(
                f"Invalid value: '{kind}'. Supported values are: {known}.", f"{place}.type", "invalid_value"
            )
    return functions, server


def _mapped_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    """A choice of a tool that runs on the server is one that the model makes by itself."""
    if isinstance(choice, dict) and choice.get("type") in (*_SERVER_TOOLS, "mcp"):
        raise ParameterError("A tool that runs on the server cannot be forced; use 'auto'.", "tool_choice")
    return choice


def _format(asked: Mapping[str, Any]) -> api.ResponseFormat:
    place = "text.format"
    match one_of(a_string(asked, "type", place), ("text", "json_object", "json_schema", "grammar"), f"{place}.type"):
        case "json_schema":
            return json_schema_format(an_object(asked, place), place)
        case "grammar":
            return grammar_format(asked, place)
        case "json_object":
            return api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_JSON_OBJECT)
        case _:
            return api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_TEXT)

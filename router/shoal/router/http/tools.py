"""Tools and formats as the messages of the gRPC API know them: what both chat APIs have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.content import a_string, an_object, one_of, only, wrong_type
from shoal.router.http.errors import ParameterError
from shoal.router.http.sampling import rename_sampling

_FUNCTION = frozenset({"name", "description", "parameters", "strict", "type"})
_MODES = {
    "none": api.TOOL_CHOICE_MODE_NONE,
    "auto": api.TOOL_CHOICE_MODE_AUTO,
    "required": api.TOOL_CHOICE_MODE_REQUIRED,
}
_EFFORTS = {
    "none": api.REASONING_EFFORT_LOW,
    "minimal": api.REASONING_EFFORT_LOW,
    "low": api.REASONING_EFFORT_LOW,
    "medium": api.REASONING_EFFORT_MEDIUM,
    "high": api.REASONING_EFFORT_HIGH,
}


def effort_of(effort: str | None, place: str) -> tuple[api.ReasoningEffort.ValueType, int | None]:
    """The effort, and the bound on reasoning tokens that it means: "none" is enforced, not asked for."""
    if effort is None:
        return api.REASONING_EFFORT_UNSPECIFIED, None
    return _EFFORTS[one_of(effort, tuple(_EFFORTS), place)], 0 if effort == "none" else None


def function_tool(function: Mapping[str, Any], place: str) -> api.Tool:
    """A function that the caller runs."""
    only(function, _FUNCTION, place)
    parameters = function.get("parameters")
    return api.Tool(
        name=a_string(function, "name", place),
        description=a_string(function, "description", place, ""),
        parameters="" if parameters is None else schema_text(parameters, f"{place}.parameters"),
        strict=_flag(function, "strict", place),
    )


def schema_text(schema: object, place: str) -> str:
    """A JSON Schema as text, its properties in the caller's order."""
    return json.dumps(an_object(schema, place), ensure_ascii=False)


def json_schema_format(schema: Mapping[str, Any], place: str) -> api.ResponseFormat:
    """An answer that satisfies a schema: {name, description, schema, strict}."""
    if schema.get("schema") is None:
        raise ParameterError(
            f"Missing required parameter: '{place}.schema'.", f"{place}.schema", "missing_required_parameter"
        )
    return api.ResponseFormat(
        kind=api.RESPONSE_FORMAT_KIND_JSON_SCHEMA,
        schema=schema_text(schema["schema"], f"{place}.schema"),
        name=a_string(schema, "name", place),
        description=a_string(schema, "description", place, ""),
        strict=_flag(schema, "strict", place),
    )


def grammar_format(grammar: Mapping[str, Any], place: str) -> api.ResponseFormat:
    """An answer in a language: {type: grammar, syntax: lark | regex, definition}, as OpenAI's custom tools say it."""
    only(grammar, frozenset({"type", "syntax", "definition"}), place)
    syntax = one_of(a_string(grammar, "syntax", place), ("lark", "regex"), f"{place}.syntax")
    kind = api.RESPONSE_FORMAT_KIND_LARK if syntax == "lark" else api.RESPONSE_FORMAT_KIND_REGEX
    return api.ResponseFormat(kind=kind, schema=a_string(grammar, "definition", place))


def response_format(asked: Mapping[str, Any]) -> api.ResponseFormat:
    """What an answer must look like, as completions say it. Raises ParameterError."""
    place = "response_format"
    kinds = ("text", "json_object", "json_schema", "grammar")
    match one_of(a_string(asked, "type", place), kinds, f"{place}.type"):
        case "json_schema":
            return json_schema_format(
                an_object(asked.get("json_schema"), f"{place}.json_schema"), f"{place}.json_schema"
            )
        case "grammar":
            return grammar_format(asked, place)
        case "json_object":
            return api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_JSON_OBJECT)
        case _:
            return api.ResponseFormat(kind=api.RESPONSE_FORMAT_KIND_TEXT)


def rename_format(field: str) -> str:
    """What a caller of completions calls one of our fields.

    >>> rename_format("response_format.schema"), rename_format("sampling.top_p")
    ('response_format.json_schema.schema', 'top_p')
    """
    if field.startswith("response_format.schema"):
        return field.replace("response_format.schema", "response_format.json_schema.schema", 1)
    return rename_sampling(field)


def tool_choice(choice: object, tools: Sequence[api.Tool], place: str) -> tuple[api.ToolChoice, list[api.Tool]]:
    """Whether tools are called, and which of them the model is told about.

    Takes both spellings of a named function: {type: function, function: {name}} and {type: function, name}.
    """
    if isinstance(choice, str):
        return api.ToolChoice(mode=_MODES[one_of(choice, tuple(_MODES), place)]), list(tools)
    if not isinstance(choice, dict):
        wrong_type(place, "a string or an object", choice)
    kind = one_of(a_string(choice, "type", place), ("function", "allowed_tools"), f"{place}.type")
    if kind == "allowed_tools":
        return _allowed(an_object(choice.get("allowed_tools", choice), place), tools, place)
    name = _name(choice, place)
    if name not in {tool.name for tool in tools}:
        raise ParameterError(f"Tool choice '{name}' not found in 'tools' parameter.", place)
    return api.ToolChoice(mode=api.TOOL_CHOICE_MODE_NAMED, name=name), list(tools)


def _allowed(
    allowed: Mapping[str, Any], tools: Sequence[api.Tool], place: str
) -> tuple[api.ToolChoice, list[api.Tool]]:
    mode = one_of(a_string(allowed, "mode", place), ("auto", "required"), f"{place}.mode")
    listed = allowed.get("tools")
    if not isinstance(listed, list):
        wrong_type(f"{place}.tools", "an array", listed)
    names = {_name(an_object(tool, f"{place}.tools[{i}]"), f"{place}.tools[{i}]") for i, tool in enumerate(listed)}
    if unknown := sorted(names - {tool.name for tool in tools}):
        raise ParameterError(f"Tool choice '{unknown[0]}' not found in 'tools' parameter.", place)
    return api.ToolChoice(mode=_MODES[mode]), [tool for tool in tools if tool.name in names]


def _name(choice: Mapping[str, Any], place: str) -> str:
    return a_string(an_object(choice.get("function", choice), f"{place}.function"), "name", place)


def _flag(value: Mapping[str, Any], name: str, place: str) -> bool:
    found = value.get(name)
    if found is not None and not isinstance(found, bool):
        wrong_type(f"{place}.{name}", "a boolean", found)
    return bool(found)

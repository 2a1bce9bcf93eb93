"""What a request demands of a turn: functions, whether they are called, what the answer looks like. Pure.

Read from the request once; said to the model in the developer message and enforced on it by the worker's constraint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.constraint.rules import Language, ToolChoice, ToolRule, TurnRules
from shoal.router.errors import FieldError
from shoal.router.harmony.namespace import FUNCTIONS, Function, Namespace
from shoal.router.harmony.preface import AnswerFormat
from shoal.router.tools.runner import ToolRunner, rules_of

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_CHOICES: dict[int, ToolChoice] = {
    api.TOOL_CHOICE_MODE_UNSPECIFIED: "auto",
    api.TOOL_CHOICE_MODE_AUTO: "auto",
    api.TOOL_CHOICE_MODE_NONE: "none",
    api.TOOL_CHOICE_MODE_REQUIRED: "required",
}


@dataclass(frozen=True, slots=True)
class Demands:
    """A turn's demands. The default: none."""

    functions: tuple[Function, ...] = ()
    formats: tuple[AnswerFormat, ...] = ()
    runners: tuple[ToolRunner, ...] = ()
    rules: TurnRules = field(default_factory=TurnRules)

    @property
    def bind(self) -> bool:
        """Whether a worker has to enforce something."""
        rules = self.rules
        return bool(rules.tools) or rules.answer is not None or rules.reasoning_budget is not None

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """What the model is told of tools that run on the server."""
        return tuple(runner.namespace for runner in self.runners)

    def later(self, *, reasoned: int, may_call: bool) -> TurnRules:
        """The rules after a call of a server's tool was answered, `reasoned` tokens having been spent on reasoning.

        A call that was required was made. `may_call`: whether tools of the server may be called again.
        """
        rules = replace(self.rules, tool_choice="none" if self.rules.tool_choice == "none" else "auto", named="")
        if rules.reasoning_budget is not None:
            rules = replace(rules, reasoning_budget=max(0, rules.reasoning_budget - reasoned))
        return rules if may_call else self.without_server_tools(rules)

    @staticmethod
    def without_server_tools(rules: TurnRules) -> TurnRules:
        """The rules when no call of a server's tool is left."""
        return replace(rules, tools=tuple(tool for tool in rules.tools if not tool.on_server))


def read_demands(
    request: api.ChatRequest, tools: Sequence[api.Tool], runners: Sequence[ToolRunner], *, parallel: bool = False
) -> Demands:
    """The demands of a turn with these tools. Raises FieldError; whether grammars can be enforced is checked later.

    `parallel`: whether several calls in one turn are allowed where the request does not say.
    """
    functions, tool_rules = [], []
    for index, tool in enumerate(tools):
        function, rule = _tool(f"tools[{index}]", tool)
        functions.append(function)
        tool_rules.append(rule)
    for runner in runners:
        tool_rules += rules_of(runner)
    choice, named = _choice(request.tool_choice, tool_rules)
    answer, formats = read_answer(request.response_format)
    rules = TurnRules(
        tools=tuple(tool_rules),
        tool_choice=choice,
        named=named,
        answer=answer,
        parallel=request.parallel_tool_calls if request.HasField("parallel_tool_calls") else parallel,
        reasoning_budget=request.reasoning_budget if request.HasField("reasoning_budget") else None,
        answer_field="response_format.schema",
    )
    return Demands(tuple(functions), formats, tuple(runners), rules)


def tools_to_text(tools: Sequence[api.Tool], server_tools: Sequence[str] = ()) -> str:
    """Tools as a session keeps them; empty for none."""
    rows = [[tool.name, tool.description, tool.parameters, tool.strict] for tool in tools]
    kept = {"functions": rows, "server": sorted(set(server_tools))}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")) if rows or server_tools else ""


def tools_from_text(text: str) -> tuple[list[api.Tool], list[str]]:
    """What `tools_to_text` wrote: functions, and names of tools that run on the server."""
    kept = json.loads(text) if text else {"functions": [], "server": []}
    rows = kept["functions"]
    return [api.Tool(name=r[0], description=r[1], parameters=r[2], strict=r[3]) for r in rows], kept["server"]


def _tool(field: str, tool: api.Tool) -> tuple[Function, ToolRule]:
    if _NAME.fullmatch(tool.name) is None:
        raise FieldError(f"{field}.name", f"must be letters, digits, '_' and '-', 1 to 64 of them, not {tool.name!r}")
    schema: dict[str, Any] | None = None
    if tool.parameters:
        place = f"{field}.parameters"
        found = _json(place, tool.parameters)
        if not isinstance(found, dict):
            raise FieldError(place, f"must be a JSON Schema, an object, not {type(found).__name__}")
        if found.get("type", "object") != "object":
            raise FieldError(place, f"must describe an object, not {json.dumps(found['type'])}")
        schema = {"type": "object", **found}
    language = Language.json_schema(_NO_ARGUMENTS if schema is None else schema, strict=tool.strict)
    function = Function(tool.name, tool.description, schema)
    return function, ToolRule(f"{FUNCTIONS}.{tool.name}", language, field=field)


def _choice(choice: api.ToolChoice, tools: Sequence[ToolRule]) -> tuple[ToolChoice, str]:
    if choice.mode != api.TOOL_CHOICE_MODE_NAMED:
        if choice.name:
            raise FieldError("tool_choice.name", "has a meaning for TOOL_CHOICE_MODE_NAMED only")
        if choice.mode not in _CHOICES:
            raise FieldError("tool_choice.mode", f"has no meaning {choice.mode}")
        return _CHOICES[choice.mode], ""
    recipients = {tool.recipient for tool in tools}
    for recipient in (f"{FUNCTIONS}.{choice.name}", choice.name):
        if recipient in recipients:
            return "required", recipient
    raise FieldError("tool_choice.name", f"names {choice.name!r}, which is not among the tools")


def read_answer(form: api.ResponseFormat) -> tuple[Language | None, tuple[AnswerFormat, ...]]:
    """The language that an answer is bound to, and what the model is told of it. Raises FieldError."""
    free = form.kind in (api.RESPONSE_FORMAT_KIND_UNSPECIFIED, api.RESPONSE_FORMAT_KIND_TEXT)
    if (free or form.kind == api.RESPONSE_FORMAT_KIND_JSON_OBJECT) and form.schema:
        raise FieldError("response_format.schema", "has no meaning for this kind of format")
    if not free and form.name and _NAME.fullmatch(form.name) is None:
        raise FieldError("response_format.name", "must be letters, digits, '_' and '-', at most 64")
    match form.kind:
        case _ if free:
            return None, ()
        case api.RESPONSE_FORMAT_KIND_JSON_OBJECT:
            return Language.json_object(), (_format(form, '{"type":"object"}'),)
        case api.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
            schema = _json("response_format.schema", form.schema)
            if not isinstance(schema, dict | bool):
                raise FieldError("response_format.schema", "must be a JSON Schema: an object, true or false")
            shown = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
            return Language.json_schema(schema, strict=form.strict), (_format(form, shown),)
        case api.RESPONSE_FORMAT_KIND_REGEX:
            return Language.regex(_given(form)), (_format(form, form.schema, "Text that this matches as a whole."),)
        case api.RESPONSE_FORMAT_KIND_LARK:
            return Language.lark(_given(form)), (_format(form, form.schema, "Text of this grammar."),)
        case _:
            raise FieldError("response_format.kind", f"has no meaning {form.kind}")


def _given(form: api.ResponseFormat) -> str:
    if not form.schema:
        raise FieldError("response_format.schema", "is missing")
    return form.schema


def _format(form: api.ResponseFormat, schema: str, usual: str = "") -> AnswerFormat:
    return AnswerFormat(form.name or "answer", schema, form.description or usual)


def _json(field: str, text: str) -> Any:
    if not text:
        raise FieldError(field, "is missing")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError(field, f"is not JSON: {error}") from None

"""What a request demands of a turn."""

from __future__ import annotations

import json

import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.constraint.rules import Language
from shoal.router.errors import FieldError
from shoal.router.harmony.builtin import PYTHON
from shoal.router.inference.demands import Demands, read_demands, tools_from_text, tools_to_text
from shoal.router.tools.runner import ToolOutput
from shoal.router.tools.scripted import ScriptedTool

LOOKUP = api.Tool(name="lookup", description="Looks up.", parameters='{"properties":{"q":{"type":"string"}}}')
NOW = api.Tool(name="now")


def demands(tools: list[api.Tool] | None = None, runners: tuple[ScriptedTool, ...] = (), **fields: object) -> Demands:
    """Of a request with these fields."""
    request = api.ChatRequest(**fields)  # type: ignore[arg-type]  # by name
    return read_demands(request, tools or [], runners)


def form(kind: api.ResponseFormatKind.ValueType, schema: str = "", **fields: str) -> api.ResponseFormat:
    """A response format."""
    return api.ResponseFormat(kind=kind, schema=schema, **fields)  # type: ignore[arg-type]  # by name


def test_a_plain_request_binds_nothing() -> None:
    """Without tools, format or budget there is nothing for a worker to enforce."""
    assert not demands().bind
    assert not demands(response_format=form(api.RESPONSE_FORMAT_KIND_TEXT)).bind
    assert not demands(tool_choice=api.ToolChoice(mode=api.TOOL_CHOICE_MODE_NONE)).bind


def test_functions_are_called_by_their_whole_name() -> None:
    """The model is told of functions; the rules know them as functions.<name>, with their arguments' schema."""
    read = demands([LOOKUP, NOW])

    assert [function.name for function in read.functions] == ["lookup", "now"]
    assert [tool.recipient for tool in read.rules.tools] == ["functions.lookup", "functions.now"]
    assert read.functions[1].parameters is None
    arguments = read.rules.tools[1].arguments
    assert arguments is not None
    assert json.loads(arguments.source)["additionalProperties"] is False


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        (api.Tool(name="no spaces"), r"tools\[0\]\.name must be"),
        (api.Tool(name=""), r"tools\[0\]\.name must be"),
        (api.Tool(name="f", parameters="{"), r"tools\[0\]\.parameters is not JSON"),
        (api.Tool(name="f", parameters="[" * 100_000), r"tools\[0\]\.parameters is not JSON"),
        (api.Tool(name="f", parameters="[]"), r"tools\[0\]\.parameters must be a JSON Schema"),
        (api.Tool(name="f", parameters='{"type":"string"}'), r"tools\[0\]\.parameters must describe an object"),
    ],
)
def test_tools_that_are_none(tool: api.Tool, problem: str) -> None:
    """What is wrong with a tool is said with its place."""
    with pytest.raises(FieldError, match=problem):
        demands([tool])


@pytest.mark.parametrize(
    ("mode", "name", "choice", "named"),
    [
        (api.TOOL_CHOICE_MODE_UNSPECIFIED, "", "auto", ""),
        (api.TOOL_CHOICE_MODE_AUTO, "", "auto", ""),
        (api.TOOL_CHOICE_MODE_NONE, "", "none", ""),
        (api.TOOL_CHOICE_MODE_REQUIRED, "", "required", ""),
        (api.TOOL_CHOICE_MODE_NAMED, "now", "required", "functions.now"),
    ],
)
def test_tool_choices(mode: api.ToolChoiceMode.ValueType, name: str, choice: str, named: str) -> None:
    """Every mode has its rule."""
    rules = demands([LOOKUP, NOW], tool_choice=api.ToolChoice(mode=mode, name=name)).rules

    assert (rules.tool_choice, rules.named) == (choice, named)


@pytest.mark.parametrize(
    "choice",
    [
        api.ToolChoice(mode=api.TOOL_CHOICE_MODE_NAMED, name="other"),
        api.ToolChoice(mode=api.TOOL_CHOICE_MODE_NAMED),
        api.ToolChoice(mode=api.TOOL_CHOICE_MODE_AUTO, name="now"),
        api.ToolChoice(mode=77),  # type: ignore[arg-type]  # what a newer client may send
    ],
)
def test_tool_choices_without_meaning(choice: api.ToolChoice) -> None:
    """An unknown tool or mode, or a name without a use, is refused."""
    with pytest.raises(FieldError, match="tool_choice"):
        demands([LOOKUP, NOW], tool_choice=choice)


def test_formats_are_told_and_enforced() -> None:
    """The model reads the schema under the format's name, and the answer is bound to it."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    read = demands(response_format=form(api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, json.dumps(schema), name="sum"))

    assert read.rules.answer == Language.json_schema(schema, strict=False)
    assert read.formats[0].text() == '## sum\n\n{"type":"object","properties":{"a":{"type":"integer"}}}'
    assert demands(response_format=form(api.RESPONSE_FORMAT_KIND_REGEX, "a+")).rules.answer == Language.regex("a+")
    assert demands(response_format=form(api.RESPONSE_FORMAT_KIND_LARK, 'start: "a"')).rules.answer is not None
    assert demands(response_format=form(api.RESPONSE_FORMAT_KIND_JSON_OBJECT)).rules.answer is not None


@pytest.mark.parametrize(
    "wrong",
    [
        form(api.RESPONSE_FORMAT_KIND_JSON_SCHEMA),
        form(api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, "nonsense"),
        form(api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, "3"),
        form(api.RESPONSE_FORMAT_KIND_JSON_SCHEMA, "{}", name="a b"),
        form(api.RESPONSE_FORMAT_KIND_REGEX),
        form(api.RESPONSE_FORMAT_KIND_LARK),
        form(api.RESPONSE_FORMAT_KIND_TEXT, "{}"),
        form(api.RESPONSE_FORMAT_KIND_JSON_OBJECT, "{}"),
        form(99),  # type: ignore[arg-type]  # what a newer client may send
    ],
)
def test_formats_that_are_none(wrong: api.ResponseFormat) -> None:
    """A format without what it needs, or with what it cannot have, is refused by name."""
    with pytest.raises(FieldError, match=r"response_format\."):
        demands(response_format=wrong)


def test_after_a_call_the_rest_of_the_budget_holds() -> None:
    """Once a call was made none is required any more; a spent turn keeps the caller's own functions alone."""
    python = ScriptedTool(PYTHON, [ToolOutput("4")])
    required = api.ToolChoice(mode=api.TOOL_CHOICE_MODE_REQUIRED)
    read = demands([NOW], (python,), tool_choice=required, reasoning_budget=100)
    later, spent = read.later(reasoned=30, may_call=True), read.later(reasoned=300, may_call=False)

    assert (later.tool_choice, later.reasoning_budget) == ("auto", 70)
    assert [tool.recipient for tool in later.tools] == ["functions.now", "python"]
    assert spent.reasoning_budget == 0
    assert [tool.recipient for tool in spent.tools] == ["functions.now"]


def test_sessions_keep_tools_as_they_were() -> None:
    """What is written for a session is read back equal."""
    assert tools_from_text(tools_to_text([LOOKUP, NOW], ["python"])) == ([LOOKUP, NOW], ["python"])
    assert tools_to_text([]) == ""
    assert tools_from_text("") == ([], [])

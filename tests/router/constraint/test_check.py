"""What cannot be enforced is refused by name, place and reason, without a vocabulary and without torch."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.router.constraint.check import check, check_off_loop
from shoal.router.constraint.place import place_of
from shoal.router.constraint.rules import Language, ToolRule, TurnRules
from shoal.router.errors import FieldError
from tests.router.constraint.schemas import Schema, schemas


def tool(name: str, schema: Schema, *, strict: bool = True) -> ToolRule:
    """A function."""
    return ToolRule(name, Language.json_schema(schema, strict=strict))


BAD: Schema = {"properties": {"a/b": {"items": {"type": "strin"}}}}
DEEP: Schema = {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"uniqueItems": True}]}}}
WRONG = [
    (TurnRules(answer=Language.json_schema(BAD)), "response_format cannot be enforced at /properties/a~1b/items: Inva"),
    (TurnRules(answer=Language.json_schema(DEEP)), r"at /\$defs/n/anyOf/1: Unimplemented keys: \[\"uniqueItems\"\]"),
    (TurnRules(answer=Language.json_schema({"not": {}})), "response_format cannot be enforced: Unimplemented"),
    (TurnRules(answer=Language.json_schema({"$ref": "https://example.com/x"})), "does not fetch"),
    (TurnRules(answer=Language.json_schema({"type": "integer", "minimum": 2, "maximum": 1})), "Unsatisfiable"),
    (TurnRules(answer=Language.json_schema({"anyOf": [{"$ref": "#"}]})), "no text satisfies"),
    (TurnRules(answer=Language.regex("(")), "unclosed group"),
    (TurnRules(answer=Language.lark("start: x")), 'unknown name: "x"'),
    (TurnRules(answer=Language.lark("start: <|return|>")), "control tokens cannot be named"),
    (TurnRules(answer=Language.lark(" ")), "is empty"),
    (TurnRules(tools=(tool("functions.f", BAD, strict=False),)), r"tools\[0\].parameters cannot be enforced at /prop"),
    (
        TurnRules(tools=(ToolRule("functions.f <|end|>", field="tools[4].function.name"),)),
        r"tools\[4\].function.name is",
    ),
    (TurnRules(tools=(ToolRule("f"), ToolRule("f"))), r"tools\[1\] is named 'f', as another"),
    (TurnRules(tools=(ToolRule("f"),), named="g"), "tool_choice names 'g'"),
    (TurnRules(tool_choice="required"), "there are no tools"),
    (TurnRules(reasoning_budget=-1), "reasoning_budget"),
]


@pytest.mark.parametrize(("rules", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_cannot_be_enforced_is_refused_by_field_place_and_reason(rules: TurnRules, words: str) -> None:
    """Each wrong demand is a FieldError saying what and where."""
    with pytest.raises(FieldError, match=words):
        check(rules)


async def test_keywords_that_a_lenient_tool_cannot_enforce_are_warned_of() -> None:
    """Schemas of agents' tools are full of them: they must not end the request."""
    rules = TurnRules(tools=(tool("functions.f", {"properties": {"a": {"uniqueItems": True}}}, strict=False),))

    assert ('tools[0].parameters: Unimplemented keys: ["uniqueItems"]',) == await check_off_loop(rules)


async def test_a_slow_grammar_does_not_hold_up_the_loop() -> None:
    """While grammars compile, the event loop turns."""
    properties = {f"key{i}": {"type": "string", "pattern": f"^(a|b{i}){{1,{i + 1}}}$"} for i in range(150)}
    checking = asyncio.create_task(check_off_loop(TurnRules(answer=Language.json_schema({"properties": properties}))))
    turns = 0
    while not checking.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 2
    assert () == await checking


@settings(max_examples=40, deadline=None)
@given(schema=schemas())
def test_schemas_that_are_right_have_no_place_of_failure(schema: Schema) -> None:
    """A schema that compiles passes the check, and nothing in it is pointed at."""
    language = Language.json_schema(schema)

    assert () == check(TurnRules(answer=language))
    assert "" == place_of(pb.GRAMMAR_KIND_JSON_SCHEMA, language.source, "Invalid type: strin")

"""Turns of a model without sense, sampled under what the router builds: always well-formed, always as demanded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.router.constraint.build import build_constraint, build_text_constraint
from shoal.router.constraint.check import check
from shoal.router.constraint.rules import Language, ToolRule, TurnRules
from shoal.router.harmony.parse import Closed
from tests.router.byte_tokenizer import ids_of
from tests.router.constraint.model import Speaker, valid
from tests.router.constraint.schemas import Schema, objects, schemas

WEATHER = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}}, "required": ["city"],
           "additionalProperties": False}  # fmt: skip
MOON: Schema = {"type": "object", "properties": {"full": {"type": "boolean"}}, "additionalProperties": False}
TOOLS = (
    ToolRule("functions.weather", Language.json_schema(WEATHER)),
    ToolRule("functions.weather_on_moon", Language.json_schema(MOON)),
)
ANSWER: Schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """With the small vocabulary of test checkpoints."""
    return Speaker.of("tiny", tmp_path_factory.mktemp("tiny"))


def rules_strategy() -> st.SearchStrategy[tuple[TurnRules, dict[str, Schema], Schema | None]]:
    """Everything that can be demanded at once, with the schemas by recipient and of the answer."""

    def made(
        tools: list[Schema],
        choice: Any,
        named: bool,
        answer: Schema | None,
        budget: int | None,
        preambles: bool,
        parallel: bool,
    ) -> tuple[TurnRules, dict[str, Schema], Schema | None]:
        by_name = {f"functions.t{'_x' * i}": schema for i, schema in enumerate(tools)}
        rules = TurnRules(
            tools=tuple(ToolRule(name, Language.json_schema(schema)) for name, schema in by_name.items()),
            tool_choice=choice if tools or choice != "required" else "auto",
            named="functions.t" if named and tools else "",
            answer=Language.json_schema(answer) if answer is not None else None,
            reasoning_budget=budget,
            preambles=preambles,
            parallel=parallel,
        )
        return rules, by_name, answer

    return st.builds(
        made,
        st.lists(objects(), max_size=3),
        st.sampled_from(["none", "auto", "required"]),
        st.booleans(),
        st.none() | schemas(),
        st.none() | st.integers(0, 30),
        st.booleans(),
        st.booleans(),
    )


def obeys(messages: list[Closed], rules: TurnRules, tools: dict[str, Schema], answer: Schema | None) -> None:
    """Assert everything that the rules promise of a turn."""
    calls = [m for m in messages if m.header.recipient]
    before, last = (messages[: -len(calls)], calls[-1]) if calls else (messages[:-1], messages[-1])
    spent = sum(len(m.content_ids) for m in messages if m.header.channel == "analysis")

    assert all(m.header.recipient == "" and m.header.channel in ("analysis", "commentary") for m in before)
    if rules.reasoning_budget is not None:
        assert spent <= rules.reasoning_budget
    if not rules.preambles:
        assert all(m.header.channel == "analysis" for m in before)
    assert len(calls) <= 1 or (rules.parallel and not rules.named)
    for call in calls:
        assert call.header.channel == "commentary"
        assert call.header.content_type == "json"
        assert rules.tool_choice != "none" or rules.named
        assert call.header.recipient == rules.named or not rules.named
        assert valid(call.text, tools[call.header.recipient])
    if not calls:
        assert last.header.channel == "final"
        assert not rules.must_call
        if answer is not None:
            assert valid(last.text, answer)
            assert all(m.header.channel == "analysis" for m in before)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(demand=rules_strategy(), seed=st.integers(0, 2**32))
def test_any_turn_under_any_rules_is_as_demanded(
    demand: tuple[TurnRules, dict[str, Schema], Schema | None], seed: int, speaker: Speaker
) -> None:
    """Tools, answer, budget and choice in every combination: the turn parses without repair, its JSON is valid."""
    rules, tools, answer = demand
    check(rules)

    said = speaker.say(rules, seed)
    if rules.repeatable and speaker.control.call in said:  # what comes after the last call is left out
        said = said[: len(said) - said[::-1].index(speaker.control.call)]
    obeys(speaker.read(said), rules, tools, answer)


def test_a_full_size_vocabulary_is_served_alike(tmp_path: Path) -> None:
    """The published ids, 201,088 of them: tools, an answer and a budget in one request."""
    speaker = Speaker.of("20b", tmp_path)
    rules = TurnRules(tools=TOOLS, answer=Language.json_schema(ANSWER), reasoning_budget=20)

    assert 200002 == speaker.control.return_
    for seed in range(3):
        by_name = {"functions.weather": WEATHER, "functions.weather_on_moon": MOON}
        obeys(speaker.read(speaker.say(rules, seed)), rules, by_name, ANSWER)


CITY = '<|constrain|>json<|message|>{"city": "Rom"}<|call|>'
JSON = Language.json_schema(ANSWER)
AGAIN = "<|end|><|start|>assistant"
ALLOWED = [
    (TurnRules(), f"<|channel|>analysis<|message|>hm{AGAIN}<|channel|>final<|message|>Hi<|return|>"),
    (TurnRules(), "<|channel|>final<|message|><|return|>"),
    (TurnRules(), f"<|channel|>commentary<|message|>I look.{AGAIN}<|channel|>final<|message|>4<|return|>"),
    (TurnRules(tools=TOOLS), f"<|channel|>commentary to=functions.weather {CITY}"),
    (TurnRules(tools=TOOLS), f" to=functions.weather<|channel|>commentary {CITY}"),
    (TurnRules(tools=TOOLS, answer=JSON), "<|channel|>final <|constrain|>json<|message|>[1, 2]<|return|>"),
    (TurnRules(tools=TOOLS, answer=JSON),
     f"<|channel|>commentary<|message|>I look.{AGAIN} to=functions.weather<|channel|>commentary {CITY}"),
    (TurnRules(answer=Language.regex("[0-9]+ days?")), "<|channel|>final<|message|>12 days<|return|>"),
    (TurnRules(answer=Language.lark('start: "<" start? ">"')), "<|channel|>final<|message|><<>><|return|>"),
    (TurnRules(answer=Language.json_object()), '<|channel|>final<|message|>{\n  "a": [1, null]\n}<|return|>'),
    (TurnRules(tools=(ToolRule("python", channel="analysis", content_type="code"),)),
     "<|channel|>analysis to=python code<|message|>print(1)<|call|>"),
    (TurnRules(tools=TOOLS, parallel=True),
     f"<|channel|>commentary to=functions.weather {CITY}<|start|>assistant<|channel|>commentary"
     f" to=functions.weather {CITY}<|start|>assistant to=functions.weather<|channel|>commentary {CITY}"
     "<|start|>assistant<|channel|>analysis"),
    (TurnRules(tools=TOOLS, parallel=True),
     f"<|channel|>commentary to=functions.weather {CITY}<|start|>assistant<|channel|>commentary<|message|>"),
    (TurnRules(tools=TOOLS, parallel=True), f"<|channel|>commentary to=functions.weather {CITY}<|start|>functions"),
    (TurnRules(tools=TOOLS, parallel=True), f"<|channel|>commentary to=functions.weather {CITY}<|return|>"),
    (TurnRules(tools=TOOLS, parallel=True, named="functions.weather"),
     f"<|channel|>commentary to=functions.weather {CITY}"),
    (TurnRules(tools=(*TOOLS, ToolRule("python", channel="analysis", content_type="code", on_server=True)),
               parallel=True), "<|channel|>analysis to=python code<|message|>print(1)<|call|>"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "turn"), ALLOWED, ids=[turn for _, turn in ALLOWED])
def test_what_models_write_is_allowed(rules: TurnRules, turn: str, speaker: Speaker) -> None:
    """The usual forms of a turn, letter by letter, and they complete it."""
    cursor = speaker.begin(rules)

    for token in ids_of(speaker.tokenizer, turn):
        assert cursor.advance(token), (token, turn)
    assert cursor.ended


REFUSED = [
    (TurnRules(), "The answer", "T"),
    (TurnRules(), "<|channel|>finale", "e"),
    (TurnRules(), "<|channel|>analysis<|message|>hm<|return|>", "<|return|>"),
    (TurnRules(), "<|channel|>analysis<|message|>hm<|channel|>", "<|channel|>"),
    (TurnRules(), "<|channel|>analysis<|message|>hm<|end|><|start|>user", "u"),
    (TurnRules(), "<|channel|>commentary to=", " "),
    (TurnRules(tools=TOOLS), "<|channel|>commentary to=functions.weathers", "s"),
    (TurnRules(tools=TOOLS), "<|channel|>commentary to=functions.weather <|message|>", "<|message|>"),
    (TurnRules(tools=TOOLS, tool_choice="none"), "<|channel|>commentary to=", " "),
    (TurnRules(tools=TOOLS, tool_choice="required"), "<|channel|>final", "f"),
    (TurnRules(tools=TOOLS, named="functions.weather"), "<|channel|>commentary to=functions.weather_", "_"),
    (TurnRules(tools=TOOLS, answer=Language.json_schema(ANSWER)),
     "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final", "f"),
    (TurnRules(answer=Language.json_schema(ANSWER)), "<|channel|>commentary", "c"),
    (TurnRules(preambles=False), "<|channel|>commentary", "c"),
    (TurnRules(tools=TOOLS), f"<|channel|>commentary to=functions.weather {CITY}<|start|>", "<|start|>"),
    (TurnRules(tools=TOOLS, parallel=True),
     f"<|channel|>commentary to=functions.weather {CITY}<|start|>user", "u"),
    (TurnRules(tools=(*TOOLS, ToolRule("python", channel="analysis", content_type="code", on_server=True)),
               parallel=True),
     f"<|channel|>commentary to=functions.weather {CITY}<|start|>assistant to=python", "p"),
    (TurnRules(reasoning_budget=0), "<|channel|>analysis", "a"),
    (TurnRules(reasoning_budget=2), "<|channel|>analysis<|message|>hmm", "m"),
    (TurnRules(reasoning_budget=2), "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>a", "a"),
    (TurnRules(tools=TOOLS, tool_choice="required", reasoning_budget=1),
     "<|channel|>analysis<|message|>h<|end|><|start|>assistant<|channel|>a", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "turn", "wrong"), REFUSED, ids=[turn for _, turn, _ in REFUSED])
def test_what_was_not_demanded_is_not_allowed(rules: TurnRules, turn: str, wrong: str, speaker: Speaker) -> None:
    """The first wrong token is refused: malformed headers, other tools, answers where a call must come."""
    cursor, tokens = speaker.begin(rules), ids_of(speaker.tokenizer, turn)
    refused = next((i for i, token in enumerate(tokens) if not cursor.advance(token)), None)

    assert refused is not None
    assert ids_of(speaker.tokenizer, wrong)[0] == tokens[refused]


def test_raw_text_is_of_its_language_to_the_end(speaker: Speaker) -> None:
    """Without a chat format: the text, whole, then an end token; neither comes too early."""
    control = speaker.control
    cursor = speaker.compiler.begin(
        build_text_constraint(Language.regex("[0-9]+ days?"), (control.return_, control.call))
    )
    for token in ids_of(speaker.tokenizer, "12 da"):
        assert not cursor.advance(control.return_)
        assert cursor.advance(token)
    assert cursor.advance(*ids_of(speaker.tokenizer, "y"))
    assert not cursor.advance(control.end)
    assert cursor.advance(control.return_)
    assert cursor.ended


def test_a_spent_budget_hands_over_to_the_answer(speaker: Speaker) -> None:
    """After the last token of reasoning every token is given, up to the answer's first."""
    cursor = speaker.begin(TurnRules(tools=TOOLS, reasoning_budget=3))
    for token in ids_of(speaker.tokenizer, "<|channel|>analysis<|message|>abc"):
        cursor.advance(token)
    forced = ids_of(speaker.tokenizer, "<|end|><|start|>assistant<|channel|>final<|message|>")

    for token in forced:
        assert [token] == cursor.allowed().tolist()
        cursor.advance(token)
    assert len(cursor.allowed()) > 200


def test_equal_rules_give_equal_constraints(speaker: Speaker) -> None:
    """So that a worker compiles them once."""
    first, second = (build_constraint(TurnRules(tools=TOOLS, reasoning_budget=5), speaker.control) for _ in range(2))

    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)

"""What the other tasks ask and what they hold for right."""

from __future__ import annotations

import json
import random

import pytest

from shoal.cluster.nano import recall, schema, tools
from shoal.cluster.nano.answer import Answer, Call, is_right
from shoal.cluster.nano.example import EFFORTS, Example
from shoal.cluster.nano.mixture import EXAMS


def drawn(name: str, count: int = 60) -> list[Example]:
    rng = random.Random(name)
    return [EXAMS[name](rng, rng.choice(EFFORTS)) for _ in range(count)]


@pytest.mark.parametrize("name", ["recall", "recall far"])
def test_what_is_recalled_was_said(name: str) -> None:
    """Or the answer says that it was not."""
    for example in drawn(name):
        told = " ".join(message.content for message in example.messages if message.role == "user")
        assert example.answer in told or example.answer.startswith("You have not told me")


def test_far_recall_goes_beyond_the_window(desk: object) -> None:
    """Most of these conversations are longer than the sliding window of 128."""
    words = [sum(len(message.content.split()) for message in example.messages) for example in drawn("recall far")]
    assert sorted(words)[len(words) // 4] > 60


def test_a_call_carries_the_arguments_that_were_asked_for() -> None:
    """Valid JSON whose values stand in the question, for a function that was offered."""
    for example in drawn("tool call"):
        call = example.reply[-1]
        assert call.recipient.removeprefix("functions.") in example.tools
        for value in json.loads(call.content).values():
            assert str(value) in example.messages[-1].content


def test_a_json_answer_has_exactly_the_keys_of_its_schema() -> None:
    """In their order, each of its type."""
    types = {"string": str, "integer": int}
    for example in drawn("json"):
        shape = json.loads(example.messages[0].content.rsplit("\n", 1)[1])
        answer = json.loads(example.reply[-1].content)
        assert list(shape["properties"]) == shape["required"] == list(answer)
        for key, property in shape["properties"].items():
            assert type(answer[key]) is types[property["type"]]


def test_every_reference_reply_is_right() -> None:
    """The marks that a perfect pupil gets."""
    for name in EXAMS:
        for example in drawn(name, 20):
            last = example.reply[-1]
            if last.recipient:
                given = Answer("", (Call(last.recipient.removeprefix("functions."), last.content),))
            else:
                given = Answer(last.content)
            assert is_right(example, given), example


def test_a_wrong_answer_is_wrong() -> None:
    """Another name, another number, other arguments, a call where none was due."""
    rng = random.Random(1)
    assert not is_right(EXAMS["add 2 digits"](rng, "low"), Answer("The answer is 7."))
    assert not is_right(recall.telling(rng, "low"), Answer("Nice to meet you, Nobody."))
    call = tools.tool_call(rng, "low")
    assert not is_right(call, Answer("", (Call(call.answer.split()[0].removeprefix("functions."), '{"x":1}'),)))
    assert not is_right(call, Answer(call.answer))
    asked = schema.json_answer(rng, "low")
    assert not is_right(asked, Answer(asked.answer[:-1]))
    assert not is_right(asked, Answer(asked.answer, (Call("add", "{}"),)))


def test_a_name_that_begins_otherwise_is_not_the_name() -> None:
    """The answer must be a word of its own."""
    example = next(e for e in drawn("recall", 200) if not e.answer.startswith("You have"))
    assert not is_right(example, Answer(f"Your name is x{example.answer}."))

"""What somebody answered to a question, and whether it is right."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from shoal.cluster.nano.example import Example

_NUMBER = re.compile(r"-?\d+")
_NUMERIC = ("add 2 digits", "add 3-4 digits", "add 5-6 digits", "subtract", "multiply")
_OPENS = ("refuse", "no tool fits")
_WHOLE = ("about shoal", "told", "repeat", "tool result")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: the function's name without its namespace, the arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Text of the final channel and the tool calls."""

    text: str
    calls: tuple[Call, ...] = ()


def is_right(example: Example, answer: Answer) -> bool:
    """Whether this is what was asked for, however it is worded where wording is free."""
    if example.task == "tool call":
        name, _, arguments = example.answer.removeprefix("functions.").partition(" ")
        return len(answer.calls) == 1 and answer.calls[0].name == name and _same(answer.calls[0].arguments, arguments)
    if answer.calls:
        return False
    if example.task == "json":
        return _same(answer.text, example.answer)
    if example.task in _NUMERIC:
        numbers = _NUMBER.findall(answer.text)
        return bool(numbers) and numbers[-1] == example.answer
    if example.task in _WHOLE:
        return answer.text.strip() == example.answer
    if example.task in _OPENS:
        return answer.text.startswith(example.answer)
    return re.search(rf"(?<!\w){re.escape(example.answer)}", answer.text) is not None


def _same(text: str, wanted: str) -> bool:
    """Equal as JSON, the order of keys apart; 1 is not true and a repeated key is not JSON here."""
    try:
        return _canonical(text) == _canonical(wanted)
    except ValueError:
        return False


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text, object_pairs_hook=_unique), sort_keys=True)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found

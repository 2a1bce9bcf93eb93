"""Answers that are one JSON object of a given schema, filled from a sentence."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from shoal.cluster.nano import words
from shoal.cluster.nano.example import Example, final, thought, user
from shoal.cluster.nano.tools import compact
from shoal.router.harmony.message import ChatMessage, Effort


@dataclass(frozen=True, slots=True)
class Property:
    """A key of the object and the clauses that tell its value."""

    key: str
    kind: str
    tell: tuple[str, ...]
    value: Callable[[random.Random], str | int]


PROPERTIES = (
    Property("city", "string", ("lives in {x}", "comes from {x}"), words.city),
    Property("age", "integer", ("is {x} years old", "is {x}"), lambda rng: rng.randint(1, 99)),
    Property("color", "string", ("likes {x}", "likes the color {x}"), words.color),
    Property("food", "string", ("eats {x}", "loves {x}"), words.food),
    Property("dog", "string", ("has a dog called {x}",), words.person),
    Property("room", "integer", ("is in room {x}",), lambda rng: rng.randint(1, 999)),
)
TITLES = ("answer", "person", "record", "guest")
INSTRUCTIONS = ("Answer in JSON.", "You are a helpful assistant.", "Answer briefly.")


def schema_of(properties: list[tuple[str, str]]) -> str:
    """The JSON schema of an object that needs all of these (key, type), as text.

    >>> schema_of([("age", "integer")])
    '{"type":"object","properties":{"age":{"type":"integer"}},"required":["age"]}'
    """
    return compact({
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties},
        "required": [key for key, _ in properties],
    })  # fmt: skip


def response_format(title: str, schema: str) -> str:
    """How Harmony shows a schema to the model."""
    return f"# Response Formats\n\n## {title}\n\n{schema}"


def json_answer(rng: random.Random, effort: Effort) -> Example:
    """A sentence about a person; the schema asks for some of it, in an order of its own."""
    name = words.person(rng)
    told = rng.sample(PROPERTIES, rng.choice((1, 2, 2, 3)))
    values: dict[str, str | int] = {each.key: each.value(rng) for each in told}
    clauses = [rng.choice(each.tell).format(x=values[each.key]) for each in told]
    sentence = f"{name} {clauses[0]}" + "".join(f" and {clause}" for clause in clauses[1:]) + "."
    wanted = [("name", "string"), *((each.key, each.kind) for each in told)]
    if len(wanted) > 2 and rng.random() < 0.3:
        wanted.pop()
    rng.shuffle(wanted)
    values["name"] = name
    text = compact({key: values[key] for key, _ in wanted})
    shape = response_format(rng.choice(TITLES), schema_of(wanted))
    messages = (ChatMessage("developer", f"{rng.choice(INSTRUCTIONS)}\n\n{shape}"), user(sentence))
    work = "" if effort == "low" else f"Keys: {', '.join(key for key, _ in wanted)}."
    return Example("json", effort, messages, (*thought(work), final(text)), text, f"json {sentence}")

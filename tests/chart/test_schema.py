"""values.schema.json refuses what its keywords say, key by key: every one of them is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shoal.cluster.config import DECIDED, SECTIONS
from tests.chart.random_values import SCHEMA, resolve
from tests.chart.rendering import RefusedError, render, render_oldest

OF_ANOTHER_TYPE: dict[str, Any] = {
    "string": 7,
    "integer": "seven",
    "number": "seven",
    "boolean": "yes",
    "object": "x",
    "array": "x",
}


def leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every key with its keywords, sections included."""
    for name, below in resolve(schema).get("properties", {}).items():
        if path or name != "global":
            found = resolve(below)
            yield (*path, name), found
            yield from leaves(found, (*path, name))


def wrong(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that each break one of its keywords."""
    if "type" in schema:
        yield OF_ANOTHER_TYPE[schema["type"]]
    if "enum" in schema:
        yield "nosuchword"
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "exclusiveMinimum" in schema:
        yield schema["exclusiveMinimum"]
    if "exclusiveMaximum" in schema:
        yield schema["exclusiveMaximum"]
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "pattern" in schema:
        yield " \t "
    if schema.get("minLength"):
        yield ""
    if "maxLength" in schema and "pattern" not in schema:
        yield "a" * (schema["maxLength"] + 1)
    if "minItems" in schema:
        yield []
    if schema.get("additionalProperties") is False:
        yield {"nosuchkey": 1}
    if schema.get("type") == "array":
        yield from ([item] for item in wrong(resolve(schema.get("items", {}))))


CASES = [(path, value) for path, schema in leaves(SCHEMA) for value in wrong(schema)]


def values(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """One value at its place."""
    for part in reversed(path):
        value = {part: value}
    made: dict[str, Any] = value
    return made


def test_every_keyword_of_every_key_is_kept() -> None:
    """Out of range, of another type, another word, unknown: refused, and told by the whole key."""
    assert len(CASES) > 500
    silent = []
    for path, value in CASES:
        try:
            render(values(path, value))
            silent.append((".".join(path), value))
        except RefusedError as error:
            if f"/{'/'.join(path)}" not in str(error):
                silent.append((".".join(path), str(error)))
    assert [] == silent


@pytest.mark.parametrize(("path", "value"), CASES[:: len(CASES) // 12])
def test_the_oldest_helm_keeps_them_too(path: tuple[str, ...], value: Any) -> None:
    """A sample of them, by Helm 3.10."""
    with pytest.raises(RefusedError) as caught:
        render_oldest(values(path, value), "1.30.0")
    assert ".".join(path) in str(caught.value)


NEEDED: dict[str, dict[str, Any]] = {"worker": {"model": "m"}, "router": {"model_dir": "m"}}


def test_a_text_that_the_product_refuses_is_refused_here() -> None:
    """A pod that finds such a setting ends at once, again and again."""
    taken = []
    for section, kind in SECTIONS.items():
        offered = SCHEMA["definitions"].get(f"config{section.capitalize()}", {}).get("properties", {})
        for key, schema in offered.items():
            if schema.get("type") != "string" or "enum" in schema or "pattern" in schema:
                continue
            try:
                kind(**{**NEEDED.get(section, {}), key: "no such word"})
            except Exception as error:  # of any section's own kind
                taken += [f"{section}.{key}"] if str(error).startswith(f"{section}.{key} must be ") else []
    assert [] == taken


def test_no_setting_is_offered_that_cannot_be_set() -> None:
    """What the product decides by itself it refuses in a file."""
    there = SCHEMA["definitions"]
    offered = [f"{section}.{key}" for section, key in DECIDED
               if key in there.get(f"config{section.capitalize()}", {}).get("properties", {})]  # fmt: skip
    assert [] == offered

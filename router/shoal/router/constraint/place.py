"""Where in a JSON Schema the part lies that cannot be compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.wire.grammars import GrammarError, check_grammar

MOST_TRIALS = 256
"""Parts of a schema that are compiled to find the place."""

_ONE = ("additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("$defs", "definitions", "properties", "patternProperties")


def place_of(kind: pb.GrammarKind.ValueType, source: str, reason: str) -> str:
    """A JSON Pointer to the innermost part that fails with `reason` by itself; "" when that is the whole.

    >>> schema = '{"properties": {"a/b": {"items": {"type": "strin"}}}}'
    >>> place_of(pb.GRAMMAR_KIND_JSON_SCHEMA, schema, "Invalid type: strin")
    '/properties/a~1b/items'
    """
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(schema, dict):
        return ""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    place, trials = "", 0
    while True:
        for step, part in _parts(schema):
            trials += 1
            if trials > MOST_TRIALS:
                return place
            if _fails(kind, {**shared, **part}, reason):
                place, schema = place + step, part
                break
        else:
            return place


def _fails(kind: pb.GrammarKind.ValueType, schema: dict[str, Any], reason: str) -> bool:
    try:
        check_grammar(kind, json.dumps(schema))
    except GrammarError as error:
        return str(error) == reason
    return False


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas directly inside `schema`, definitions first, each with the pointer's next steps. Those that only
    refer to another part are left out: what fails is that part."""
    found: list[tuple[str, Any]] = []
    for key in _NAMED:
        if isinstance(named := schema.get(key), dict):
            found += ((f"/{key}/{_escaped(name)}", part) for name, part in named.items())
    for key in _MANY:
        if isinstance(parts := schema.get(key), list):
            found += ((f"/{key}/{i}", part) for i, part in enumerate(parts))
    found += ((f"/{key}", schema.get(key)) for key in _ONE)
    return ((step, part) for step, part in found if isinstance(part, dict) and not part.get("$ref"))


def _escaped(name: str) -> str:
    """As a step of a JSON Pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")

"""Random JSON Schemas that strict compilation takes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_NAMES = ["a", "b_2", "naïve", "x y", 'quo"te', "Ünï"]
_VALUES: list[Any] = ["", "word", 'q"\\', "é", 0, -3, 2.5, True, None, [1, "x"], {"k": []}]
_PATTERNS = ["^[a-c]{2,4}$", r"^\d{3}-[A-Z]+$", "^foo", "^(on|off)$", "^é?x*y$"]


def schemas(depth: int = 2) -> st.SearchStrategy[Schema]:
    """Any of the keywords below, nested; references point into `$defs` of the root."""
    return st.builds(_root, _inner(depth), st.fixed_dictionaries({"first": _leaves(), "second": _leaves()}))


def objects(depth: int = 2) -> st.SearchStrategy[Schema]:
    """Schemas of objects: what a tool takes."""
    definitions = st.fixed_dictionaries({"first": _leaves(), "second": _leaves()})
    return st.builds(_root, _objects(_inner(depth - 1)), definitions)


def _root(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """With definitions to refer to; the second of them is recursive."""
    second = {"anyOf": [definitions["second"], {"type": "array", "items": {"$ref": "#/$defs/second"}, "maxItems": 1}]}
    return {**schema, "$defs": {**definitions, "second": second}}


def _inner(depth: int) -> st.SearchStrategy[Schema]:
    if depth <= 0:
        return _leaves()
    inner = _inner(depth - 1)
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    )
    either = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    references = st.sampled_from(["first", "second"]).map(lambda name: {"$ref": f"#/$defs/{name}"})
    return st.one_of(_leaves(), arrays, tuples, either, references, _objects(inner))


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def built(properties: dict[str, Schema], required: list[str], others: Any) -> Schema:
        needed = [name for name in required if name in properties]
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": others}

    names = st.sampled_from(_NAMES)
    others = st.one_of(st.just(False), st.just(False), st.just({"type": "integer"}))
    return st.builds(built, st.dictionaries(names, inner, max_size=3), st.lists(names, unique=True, max_size=4), others)


def _leaves() -> st.SearchStrategy[Schema]:
    lengths = st.tuples(st.integers(0, 4), st.integers(0, 6))
    ranges = st.tuples(st.integers(-30, 30), st.integers(0, 50))
    return st.one_of(
        st.sampled_from(["boolean", "null", "integer", "number", "string"]).map(lambda kind: {"type": kind}),
        st.just({"type": ["string", "null"]}),
        st.lists(st.sampled_from(_VALUES), min_size=1, max_size=4).map(lambda values: {"enum": values}),
        st.sampled_from(_VALUES).map(lambda value: {"const": value}),
        lengths.map(lambda n: {"type": "string", "minLength": n[0], "maxLength": n[0] + n[1]}),
        st.sampled_from(_PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
        st.sampled_from(["date", "uuid", "ipv4", "email", "date-time"]).map(lambda f: {"type": "string", "format": f}),
        ranges.map(lambda n: {"type": "integer", "minimum": n[0], "maximum": n[0] + n[1]}),
        ranges.map(lambda n: {"type": "number", "minimum": n[0], "exclusiveMaximum": n[0] + n[1] + 1}),
        st.just({"type": "integer", "multipleOf": 5}),
    )

"""JSON Schema as the TypeScript-like types in which the model was told of functions.

The layout, with its oddities (descriptions above, defaults behind, unions one variant a line), is what openai-harmony
writes and what the model was trained on; the tests hold it against that library. Total: whatever a schema lacks or has
too much of becomes `any`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_ANY = "any"
_NAMES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def type_of(schema: object, indent: str = "") -> str:
    """The type that a schema describes; lines after the first begin with `indent`.

    >>> type_of({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}})
    '"a" | "b"[]'
    >>> print(type_of({"type": "object", "properties": {"q": {"type": "string", "default": "x"}}, "required": ["q"]}))
    {
    q: string, // default: "x"
    }
    """
    if not isinstance(schema, Mapping):
        return _ANY
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join(_variant(variant, indent) for variant in variants)
    match schema.get("type"):
        case list() as kinds:
            named = ["number" if kind == "integer" else kind for kind in kinds if isinstance(kind, str)]
            return " | ".join(named) if named else _ANY
        case "object":
            return _object(schema, indent)
        case "string":
            choices = [f'"{choice}"' for choice in _list(schema.get("enum")) if isinstance(choice, str)]
            return " | ".join(choices) if choices else "string"
        case "array":
            return f"{type_of(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
        case str() as kind:
            return _NAMES.get(kind, _ANY)
        case _:
            return _ANY


def _variant(variant: object, indent: str) -> str:
    """A line of a union, with what is to be said about it behind."""
    said, default = _text(variant, "description"), _default(variant, bare_choice=False)
    notes = [note for note in (said, default) if note is not None]
    comment = f" // {' '.join(notes)}" if notes else ""
    return f"\n{indent} | {_nullable(variant, f'{indent}   ')}{comment}"


def _object(schema: Mapping[str, Any], indent: str) -> str:
    lines = [f"{indent}// {about}\n"] if (about := _text(schema, "description")) is not None else []
    lines.append("{\n")
    required = {name for name in _list(schema.get("required")) if isinstance(name, str)}
    properties = schema.get("properties")
    for name, value in properties.items() if isinstance(properties, Mapping) else ():
        lines.append(_property(f"{name}{'' if name in required else '?'}", value, indent))
    lines.append(f"{indent}}}")
    return "".join(lines)


def _property(name: str, value: object, indent: str) -> str:
    union = value.get("oneOf") if isinstance(value, Mapping) else None
    said = _text(value, "description")
    lines: list[str | None] = []  # None: an empty comment
    if (title := _text(value, "title")) is not None:
        lines += [title, None]
    if said is not None and union is None:
        lines.append(said)
    if isinstance(value, Mapping) and (examples := _list(value.get("examples"))):
        lines += ["Examples:", *(f'- "{example}"' for example in examples if isinstance(example, str))]
    head = "".join(f"{indent}// {line}\n" if line is not None else f"{indent}//\n" for line in lines)
    if isinstance(union, list):
        return head + _union(name, value, union, said, indent)
    default = _default(value) if union is None else None
    behind = f" // {default}" if default is not None else ""
    return f"{head}{indent}{name}: {_nullable(value, f'{indent}    ')},{behind}\n"


def _union(name: str, value: object, variants: Sequence[object], said: str | None, indent: str) -> str:
    """A property that is one of several: its own description stands above unless the first variant repeats it."""
    first = _text(variants[0], "description") if variants else None
    above = said is not None and said != first
    lines = [f"{indent}// {said}\n"] if above else []
    if (default := _default(value)) is not None:
        lines.append(f"{indent}// {default}\n")
    lines.append(f"{indent}{name}:\n")
    for index, variant in enumerate(variants):
        note = _text(variant, "description")
        told = (index == 0 and above) or note == said
        notes = [part for part in (None if told else note, _default(variant)) if part is not None]
        comment = f" // {' '.join(notes)}" if notes else ""
        lines.append(f"{indent} | {_nullable(variant, f'{indent}   ')}{comment}\n")
    lines.append(f"{indent},\n")
    return "".join(lines)


def _nullable(schema: object, indent: str) -> str:
    written = type_of(schema, indent)
    may_be_null = isinstance(schema, Mapping) and schema.get("nullable") is True
    return f"{written} | null" if may_be_null and "null" not in written else written


def _default(schema: object, *, bare_choice: bool = True) -> str | None:
    """The default in words; one of an enumeration's strings stands without quotes where `bare_choice`."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return None
    default = schema["default"]
    if isinstance(default, str) and bare_choice and _list(schema.get("enum")):
        return f"default: {default}"
    if isinstance(default, str) and not _list(schema.get("enum")):
        return f'default: "{default}"'
    return f"default: {json.dumps(default, ensure_ascii=False, separators=(',', ':'))}"


def _text(schema: object, key: str) -> str | None:
    found = schema.get(key) if isinstance(schema, Mapping) else None
    return found if isinstance(found, str) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

"""Reading loosely typed JSON by hand: messages and items, where the place of a mistake matters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from shoal.router.http.errors import ParameterError

_SHOWN = 64  # characters of what a caller wrote are repeated to him
_KINDS = {str: "a string", int: "an integer", bool: "a boolean", list: "an array", dict: "an object"}


def wrong_type(place: str, expected: str, value: object) -> NoReturn:
    """Raise ParameterError."""
    found = "null" if value is None else _KINDS.get(type(value), "a number")
    raise ParameterError(
        f"Invalid type for '{place}': expected {expected}, but got {found} instead.", place, "invalid_type"
    )


def an_object(value: object, place: str) -> Mapping[str, Any]:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        wrong_type(place, "an object", value)
    return value


def a_string(value: Mapping[str, Any], name: str, place: str, default: str | None = None) -> str:
    """The string field `name`; absent or null only where there is a default."""
    found = value.get(name)
    if found is None and default is not None:
        return default
    if found is None and name not in value:
        missing(f"{place}.{name}")
    if not isinstance(found, str):
        wrong_type(f"{place}.{name}", "a string", found)
    return found


def a_number(query: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    """The parameter `name` of a query, from `least` to `most`; the default where it is absent."""
    found = query.get(name)
    if found is None:
        return default
    if not found.isascii() or not found.isdigit() or not least <= int(found[:_SHOWN]) <= most:
        message = f"Invalid value: '{found[:_SHOWN]}'. Expected an integer from {least} to {most}."
        raise ParameterError(message, name, "invalid_value")
    return int(found)


def missing(place: str) -> NoReturn:
    """Raise ParameterError."""
    raise ParameterError(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")


def only(value: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    """Refuse fields that nobody knows."""
    if unknown := sorted(set(value) - known):
        where = f"{place}.{unknown[0][:_SHOWN]}"
        raise ParameterError(f"Unknown parameter: '{where}'.", where, "unknown_parameter")


def text_of(content: object, place: str, kinds: Mapping[str, str]) -> str:
    """The text of a string or of an array of parts; `kinds` maps the types of parts to the field with their text.

    Parts follow each other without anything between, as they do for OpenAI's models. Raises ParameterError naming the
    part when it is an image, audio or a file: the model reads text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        wrong_type(place, "a string or an array of parts", content)
    return "".join(_part(part, f"{place}[{i}]", kinds) for i, part in enumerate(content))


def _part(value: object, place: str, kinds: Mapping[str, str]) -> str:
    part = an_object(value, place)
    kind = a_string(part, "type", place)
    if kind not in kinds:
        known = ", ".join(f"'{known}'" for known in kinds)
        raise ParameterError(
            f"Invalid value: '{kind[:_SHOWN]}'. This model reads text only; supported values are: {known}.",
            f"{place}.type",
            "invalid_value",
        )
    return a_string(part, kinds[kind], place)


def one_of(value: str, known: Sequence[str], place: str) -> str:
    """`value`, which must be one of `known`."""
    if value not in known:
        listed = ", ".join(f"'{name}'" for name in known)
        message = f"Invalid value: '{value[:_SHOWN]}'. Supported values are: {listed}."
        raise ParameterError(message, place, "invalid_value")
    return value

"""The body of a request: bytes within a bound, UTF-8, JSON, and the shape that the endpoint wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from shoal.router.http.errors import BodyTooLargeError, ParameterError

_LONG_BODY = 262_144  # bytes; longer ones are decoded off the event loop
_THROWN_AWAY = 128 * 2**20  # bytes
_Model = TypeVar("_Model", bound=BaseModel)


async def read_body(headers: Mapping[str, str], chunks: AsyncIterable[bytes], most: int) -> dict[str, Any]:
    """The JSON object of a request. Raises BodyTooLargeError and ParameterError.

    A body that is too large is thrown away as it comes, within bounds: a client that is still sending does not look
    for an answer, and one whose connection is closed meanwhile never sees it.
    """
    declared = headers.get("content-length", "")
    size, raw = 0, bytearray()
    async for chunk in chunks:
        size += len(chunk)
        if size <= most:
            raw += chunk
        elif size > most + _THROWN_AWAY:
            break
    if size > most:
        what = f"{declared} bytes" if declared else f"more than {most} bytes"
        raise BodyTooLargeError(f"the body has {what}, at most {most} are read")
    if len(raw) < _LONG_BODY:
        return decode(bytes(raw))
    return await asyncio.to_thread(decode, bytes(raw))


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object; nothing at all is an empty one. Raises ParameterError saying where it is none.

    >>> decode(b'{"a": 1}'), decode(b"")
    ({'a': 1}, {})
    """
    if not raw:
        return {}
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"the body is not UTF-8: byte {error.start} is wrong") from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if "\\u" in text:  # an escaped half of a surrogate pair is no character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _bad("the body has an unpaired surrogate (\\ud800 to \\udfff), which is no character") from None
    except RecursionError:
        raise _bad("the body is nested too deeply") from None
    except ValueError as error:
        raise _bad(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _bad("the body must be a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _bad(message: str) -> ParameterError:
    return ParameterError(message, code="invalid_json")


def parse(model: type[_Model], value: Mapping[str, Any]) -> _Model:
    """The request as `model`. Raises ParameterError about the first thing that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _told(error) from None


def _told(error: ValidationError) -> ParameterError:
    """In OpenAI's words: unknown, missing, of the wrong type, or of a wrong value."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = place_of([part for part in first["loc"] if not _is_branch(part)])
    problem = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            return ParameterError(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
        case "missing":
            return ParameterError(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
        case kind if kind.endswith("_type"):
            return ParameterError(f"Invalid type for '{param}': {problem}.", param, "invalid_type")
        case _:
            return ParameterError(f"Invalid value for '{param}': {problem}.", param, "invalid_value")


def _is_branch(part: int | str) -> bool:
    """Whether a part of a place names the branch of a union rather than a field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or not part.isidentifier())


def place_of(parts: Sequence[int | str]) -> str:
    """As people write it.

    >>> place_of(["messages", 0, "content"])
    'messages[0].content'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")

"""What an endpoint gives back: one JSON object, or a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.router.http.errors import Problem

DONE = b"data: [DONE]\n\n"
"""How OpenAI's older streams end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    body: Mapping[str, Any]
    http_status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer in pieces. Until `events` gave its first piece an error is still told by the status."""

    events: AsyncGenerator[bytes, None]
    last_words: Callable[[Problem], Sequence[bytes]]
    """How the stream says that it ends with an error."""


def to_json(value: Mapping[str, Any]) -> bytes:
    """Compact, and UTF-8 rather than escapes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def to_event(value: Mapping[str, Any], name: str = "") -> bytes:
    r"""One server-sent event.

    >>> to_event({"type": "x"}, "x")
    b'event: x\ndata: {"type":"x"}\n\n'
    """
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + to_json(value) + b"\n\n"


def error_event(problem: Problem) -> Sequence[bytes]:
    """The last words of a stream whose events are bare data: OpenAI's clients raise what it holds."""
    return [to_event(problem.body)]

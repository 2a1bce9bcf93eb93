"""Records in a chain: each carries a code over itself and the one before. Pure.

A change, a gap, a swap or a line of another trail breaks the chain where it is; a cut at the end shows by the head,
which is kept elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

START = "0" * 64
"""What the first record follows."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the number and the code of its last record."""

    number: int = 0
    code: str = START


@dataclass(frozen=True, slots=True)
class Problem:
    """Where a trail is not what was written."""

    line: int
    what: str


def code_of(key: bytes, before: str, body: bytes) -> str:
    """The code of a record, hex: HMAC-SHA-256 with the key, plain SHA-256 without one."""
    text = before.encode() + b"\n" + body
    return hmac.new(key, text, hashlib.sha256).hexdigest() if key else hashlib.sha256(text).hexdigest()


def chained(record: Mapping[str, Any], after: Head, key: bytes) -> tuple[bytes, Head]:
    """The record as a line, and the new end of the chain."""
    number = after.number + 1
    body = _body({**record, "number": number, "before": after.code})
    code = code_of(key, after.code, body)
    line = body[:-1] + b',"code":"' + code.encode() + b'"}\n'
    return line, Head(number, code)


def verify(lines: Iterable[bytes], key: bytes, head: Head | None = None) -> tuple[Head, list[Problem]]:
    """The chain's end, and everything that is wrong. `head`: where it must at least reach, and by which code.

    A last line without its end was never acknowledged and is no problem: a writer that died leaves one.
    """
    end, problems, reached = Head(), list[Problem](), head is None or head.number == 0
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        record, code, body = _parts(line)
        if record is None:
            problems.append(Problem(number, "this is no record"))
            continue
        if record.get("number") != end.number + 1:
            problems.append(Problem(number, f"record {end.number + 1} should be here, not {record.get('number')}"))
        if record.get("before") != end.code:
            problems.append(Problem(number, "it does not follow the record before it"))
        if not hmac.compare_digest(code_of(key, str(record.get("before")), body), code):
            problems.append(Problem(number, "it was changed, or another key made its code"))
        end = Head(int(record["number"]) if isinstance(record.get("number"), int) else end.number + 1, code)
        if head is not None and end == head:
            reached = True
    if not reached and head is not None:
        problems.append(Problem(end.number + 1, f"the trail ends before record {head.number}, which was acknowledged"))
    return end, problems


def _body(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes what JSON calls it


def _parts(line: bytes) -> tuple[dict[str, Any] | None, str, bytes]:
    """A line's record, its code, and what the code is over; no record when it is none, or not written as we write."""
    try:
        record = json.loads(line)
        code = record.pop("code")
        body = _body(record)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None, "", b""
    if not isinstance(code, str) or body[:-1] + b',"code":"' + code.encode() + b'"}\n' != line:
        return None, "", b""
    return record, code, body

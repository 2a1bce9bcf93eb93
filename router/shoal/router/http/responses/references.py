"""Items by their names: what was said to a response as it is listed, and items that a request only refers to.

An item's name tells its response: `msg_<response><number>` is one of its output, `in_<response><number>` of its input.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from shoal.router.http.content import a_string
from shoal.router.http.errors import AbsentResponseError
from shoal.router.http.responses.records import Record

_NAME = re.compile(r"([a-z]+)_([0-9a-f]{32})([0-9a-f]{2,})")

Load = Callable[[str], Awaitable[Record | None]]
"""A stored response by its id."""


def listed(record: Record) -> list[dict[str, Any]]:
    """What was said to a response, each with a name, and a message's text as parts."""
    suffix = record.response["id"].removeprefix("resp_")
    return [_listed(item, f"in_{suffix}{index:02x}") for index, item in enumerate(record.items)]


async def resolved(items: Sequence[dict[str, Any]], load: Load) -> list[dict[str, Any]]:
    """The items with those in place of which an `item_reference` stands. Raises AbsentResponseError,
    ParameterError."""
    known: dict[str, Record | None] = {}
    found = []
    for index, item in enumerate(items):
        if item["type"] != "item_reference":
            found.append(item)
            continue
        name = a_string(item, "id", f"input[{index}]")
        parts = _NAME.fullmatch(name)
        if parts is not None and parts[2] not in known:
            known[parts[2]] = await load(f"resp_{parts[2]}")
        record = known[parts[2]] if parts is not None else None
        among = [] if record is None else [*record.response["output"], *listed(record)]
        referred = next((one for one in among if one["id"] == name), None)
        if referred is None:
            raise AbsentResponseError(f"Item with id '{name}' not found.")
        found.append(referred)
    return found


def _listed(item: dict[str, Any], name: str) -> dict[str, Any]:
    found = {"id": name, **item}
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        more: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
        found["content"] = [{"type": kind, "text": item["content"], **more}]
        found.setdefault("status", "completed")
    return found

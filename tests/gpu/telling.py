"""What a part of the run says, a line of JSON at a time, so that a part that is cut short has said what it knew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIGHT = "speed of light"


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that one part said."""

    rows: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    notes: list[str]
    facts: dict[str, Any]


class Teller:
    """Appends to one file; each line is on the disk when the call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def row(
        self, case: str, value: float, unit: str, *, bound: float | None = None, peer: str = LIGHT,
        goal: float | None = None, least: bool = True, **more: Any,
    ) -> None:  # fmt: skip
        """One figure. Beside `bound`, what is at best possible or what `peer` reached, stands the ratio to it. `goal`
        is met at or above it, unless `least` is False: then at or below."""
        row: dict[str, Any] = {"case": case, "value": _short(value), "unit": unit}
        if bound is not None:
            row |= {"peer": peer, "peer_value": _short(bound), "ratio": _short(value / bound)}
        if goal is not None:
            row |= {"goal": goal, "met": value >= goal if least else value <= goal}
        self._say("row", row | {key: _short(v) if isinstance(v, float) else v for key, v in more.items()})

    def whole(self, row: dict[str, Any]) -> None:
        """One figure as it is."""
        self._say("row", row)

    def check(self, name: str, passed: bool, **more: Any) -> None:
        """Something that must hold."""
        self._say("check", {"check": name, "passed": passed, **more})

    def note(self, text: str) -> None:
        """What a reader must know, such as why a row is not there."""
        self._say("note", text)

    def fact(self, **facts: Any) -> None:
        """What later parts need."""
        self._say("fact", facts)

    def _say(self, kind: str, what: Any) -> None:
        print(kind, what if isinstance(what, str) else json.dumps(what), flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps({kind: what}) + "\n")


def read(path: Path) -> Told:
    """What was said so far; a last line that was cut off is left out."""
    told = Told([], [], [], {})
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            ((kind, what),) = json.loads(line).items()
        except ValueError:
            continue
        match kind:
            case "row":
                told.rows.append(what)
            case "check":
                told.checks.append(what)
            case "note":
                told.notes.append(what)
            case "fact":
                told.facts.update(what)
    return told


def _short(value: float) -> float:
    return float(f"{value:.5g}")

"""A run as people and programs read it: rows of case, value and unit, with the machine and the settings."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from shoal.cluster.bench.score import Figures, Objective, Spread
from shoal.cluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `goal` is what was asked of it, `met` whether it kept that."""

    case: str
    value: float
    unit: str
    goal: float | None = None
    met: bool | None = None


def rows_of(figures: Figures, objective: Objective) -> list[Row]:
    """Rates first, then every latency's mean, percentiles and largest, in milliseconds."""
    per_second = figures.per_second
    rows = [
        Row("requests answered", per_second(figures.answered), "requests/s"),
        Row("output", per_second(figures.output_tokens), "tok/s"),
        Row("input and output", per_second(figures.output_tokens + figures.input_tokens), "tok/s"),
        Row("prompt tokens found in the prefix cache", _share(figures.cached_tokens, figures.input_tokens), "share"),
        Row("requests failed", float(figures.requests - figures.answered), "requests"),
    ]
    if objective != Objective():
        rows.append(Row("goodput", per_second(figures.good), "requests/s"))
        rows.append(Row("requests within the objectives", _share(figures.good, figures.requests), "share"))
    for name, found, goal in (
        ("time to first token", figures.ttft, objective.ttft),
        ("time between tokens", figures.itl, objective.itl),
        ("time per token after the first", figures.tpot, None),
        ("end to end", figures.e2e, None),
        ("sent later than due", figures.late, None),
    ):
        if found is not None:
            rows += _latency(name, found, goal)
    return [Row(row.case, float(f"{row.value:.6g}"), row.unit, row.goal, row.met) for row in rows]


def _latency(name: str, found: Spread, goal: float | None) -> list[Row]:
    rows = [Row(f"{name}, mean", found.mean * 1e3, "ms")]
    for percent, value in found.percentiles.items():
        aimed = goal * 1e3 if goal is not None and percent == 99 else None
        met = None if goal is None or aimed is None else value <= goal
        rows.append(Row(f"{name}, p{percent}", value * 1e3, "ms", aimed, met))
    return [*rows, Row(f"{name}, longest", found.largest * 1e3, "ms")]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def record(
    name: str, rows: Sequence[Row], settings: Mapping[str, Any], notes: Sequence[str] = (), **machine: Any
) -> dict[str, Any]:
    """The document; `machine` adds to what is known of this one, which for a server elsewhere is the client's."""
    return {
        "name": name,
        "version": _version("shoal"),
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **machine,
        },
        "settings": dict(settings),
        "rows": [{key: value for key, value in asdict(row).items() if value is not None} for row in rows],
        "notes": list(notes),
    }


def write(path: Path, text: str) -> None:
    """Raises ConfigError when the file cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

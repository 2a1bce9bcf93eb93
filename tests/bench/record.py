"""The record that every benchmark writes, and how paired runs become ratios."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One case. `ratio` is the median of paired ratios against `peer`; `spread` their quartiles."""

    case: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    goal: float | None = None
    met: bool | None = None


def paired(
    case: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float], goal: float | None = None
) -> Row:
    """A row from runs taken in turn: ours[i] and theirs[i] saw the same machine. Larger is better."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    ratio = statistics.median(ratios)
    spread = (ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4])
    return Row(
        case=case,
        value=round(statistics.median(ours), 4),
        unit=unit,
        peer=peer,
        peer_value=round(statistics.median(theirs), 4),
        ratio=round(ratio, 3),
        spread=(round(spread[0], 3), round(spread[1], 3)),
        goal=goal,
        met=None if goal is None else ratio >= goal,
    )


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": None,
        "driver": None,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "ptxas": None,
        "transformers": _version("transformers"),
    }


def write(name: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> Path:
    """Write `results/<name>.json` and print it as a table."""
    record: dict[str, Any] = {
        "name": name,
        "commit": _commit(),
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "rows": [{k: v for k, v in asdict(row).items() if v is not None} for row in rows],
    }
    if notes:
        record["notes"] = list(notes)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        peer = "" if row.peer is None else f"   {row.peer}: {row.peer_value}   ratio {row.ratio} {row.spread}"
        goal = "" if row.goal is None else f"   goal {row.goal}: {'met' if row.met else 'MISSED'}"
        print(f"{row.case:44s} {row.value:>10} {row.unit}{peer}{goal}")
    return path


def add(name: str, rows: Sequence[Row], note: str = "") -> Path:
    """Write rows into a record that others write too: their rows stay, ours of the same cases are replaced. So is the
    note that begins with the same words up to its colon."""
    path, cases = RESULTS / f"{name}.json", {row.case for row in rows}
    before = json.loads(path.read_text()) if path.exists() else {"rows": []}
    fields = {field.name for field in dataclasses.fields(Row)}
    kept = [{k: v for k, v in row.items() if k in fields} for row in before["rows"] if row["case"] not in cases]
    head = note.partition(":")[0]
    notes = [other for other in before.get("notes", []) if not note or other.partition(":")[0] != head]
    return write(name, [*(Row(**row) for row in kept), *rows], [*notes, *([note] if note else [])])


def load_average() -> str:
    """How busy the machine is, in words."""
    minute, _, quarter = os.getloadavg()
    return f"load {minute:.1f} over the last minute, {quarter:.1f} over fifteen, on {os.cpu_count()} cores"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None

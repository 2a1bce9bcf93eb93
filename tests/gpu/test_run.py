"""The script that checks and times the kernels on a GPU: its parts, its time, its records."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import run
from tests.gpu.telling import Told


def arguments(out: Path, **others: Any) -> argparse.Namespace:
    usual = {"out": out, "seconds": 500.0, "interpret": False, "only": run.ORDER, "triton_kernels": None}
    return argparse.Namespace(**(usual | others))


def record(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def test_every_part_is_in_the_order_and_writes_to_a_record() -> None:
    """Each once; what is checked comes before anything is timed."""
    parts = [part.name for some in run.PARTS.values() for part in some]
    checks = [name.startswith(run.CHECKS) for name in run.ORDER]

    assert sorted(parts) == sorted(run.ORDER)
    assert checks == sorted(checks, reverse=True)


def test_what_the_parts_say_is_in_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, checks and the machine, whatever broke; a part is told its time and what was asked for."""
    commands: list[Sequence[str]] = []

    def launch(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[Told, str]:
        commands.append(command)
        name = command[command.index("--part") + 1]
        told = Told([{"case": name}], [{"check": name, "passed": True}], [], {"machine": {"gpu": "one"}})
        return told, "ended with 1" if name == "experts" else ""

    monkeypatch.setattr(run, "launch", launch)
    run.run_all(arguments(tmp_path, triton_kernels=Path("/there")))

    for name, parts in run.PARTS.items():
        found = record(tmp_path, name)
        assert {part.name for part in parts} == {row["case"] for row in found["rows"]}
        assert found["machine"] == {"gpu": "one"}
        assert len(found["checks"]) == len(found["parts"]) == len(parts)
    assert [{"part": "experts", "problem": "ended with 1"}] == [
        {key: part[key] for key in ("part", "problem")}
        for part in record(tmp_path, "gpu-moe")["parts"]
        if "problem" in part
    ]
    assert all(command[-2:] == ["--triton-kernels", "/there"] for command in commands)


def test_parts_without_time_are_left_out_and_say_so(tmp_path: Path) -> None:
    """The records are there all the same; nothing failed."""
    command = [sys.executable, run.__file__, "--interpret", "--seconds", "0", "--out", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "checks dense: 0 s were left of 0" in done.stdout
    assert record(tmp_path, "gpu-moe")["parts"][0]["skipped"].startswith("0 s were left")
    assert len(record(tmp_path, "gpu-kernels")["parts"]) == 2

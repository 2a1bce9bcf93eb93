"""Parts of a run as processes: one that hangs or breaks costs itself alone, and gives its memory back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.telling import Told, read


@dataclass(frozen=True, slots=True)
class Part:
    """`limit`: seconds after which it is killed; what it said until then is kept. It needs `least`."""

    name: str
    limit: float
    least: float


def launch(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> tuple[Told, str]:
    """Run `command` with `--say FILE` behind it: what it said there, and what went wrong with it; empty: nothing."""
    with tempfile.TemporaryDirectory(prefix="gpu-part-") as folder:
        said, errors = Path(folder) / "said.jsonl", Path(folder) / "errors"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, "--say", str(said)], env={**os.environ, **environment}, stderr=stderr, start_new_session=True
            )
            try:
                code = process.wait(seconds)
                problem = "" if code == 0 else f"ended with {code}: {_tail(errors)}"
            except subprocess.TimeoutExpired:
                problem = f"was ended after {seconds:.0f} s: what it said until then is here"
            finally:
                _end(process)
        return read(said), problem


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(errors: Path) -> str:
    lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-6:])[-1500:]

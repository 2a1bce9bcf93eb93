"""One engine in its own process, asked to generate. While it is not asked it is stopped, so that no idle thread of one
engine spins on a core of another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bench.peers.serve import Run

ROOT = Path(__file__).parents[3]
SOURCES = ("cluster", "kernels", "proto", "router", "workers")


class PeerError(Exception):
    """A peer could not be set up, loaded or run; the message says what it said."""


class Contender:
    """A process running `python -m tests.bench.peers.<module> MODEL THREADS`. Raises PeerError when it dies."""

    def __init__(
        self, module: str, model: Path, threads: int, log: Path, python: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.module = module
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", f"tests.bench.peers.{module}", str(model), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **(env or {})},
            )
        self.name: str = self._answer()["ready"]
        self._pause()

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> Run:
        """Generate `new` tokens greedily after each prompt, all prompts in one batch."""
        os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompts": [list(p) for p in prompts], "new": new}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerError(f"{self.module}: {error}: {self._tail()}") from error
        answer = self._answer()
        self._pause()
        return Run(answer["prefill"], answer["decode"], answer["tokens"])

    def close(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(f"{self.module}: ended with status {self._process.returncode}: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

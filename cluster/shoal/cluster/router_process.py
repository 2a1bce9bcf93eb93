"""A router as a child process of `shoal serve`: it dies with its parent, and says where it listens in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from shoal.cluster.config import as_environment
from shoal.cluster.errors import StartError
from shoal.router.config import RouterConfig


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a router listens, `host:port`; `http` and `metrics` are empty when it serves none."""

    grpc: str
    http: str
    metrics: str

    def again(self, config: RouterConfig) -> RouterConfig:
        """Settings of a router that takes the place of this one."""
        found = {"port": self.grpc, "http_port": self.http, "metrics_port": self.metrics}
        ports = {key: int(address.rpartition(":")[2]) for key, address in found.items() if address}
        return replace(config, **ports)  # type: ignore[arg-type]  # all of them are ports


class RouterProcess:
    """Started from the main thread: the kernel ends a child with the thread that forked it."""

    def __init__(self, config: RouterConfig, log: Path | None) -> None:
        """`config.ready_file` must be set. Output goes to the file `log`, or with None where ours goes."""
        assert config.ready_file, "a router must say when it listens"
        self._ready = Path(config.ready_file)
        self._ready.unlink(missing_ok=True)
        self._log = log
        # Its settings go by environment, not by arguments: the Redis URL among them may hold a password.
        environment = {**os.environ, **as_environment("router", config)}
        command = [sys.executable, "-m", "shoal.cluster.cli", "router", "--parent", str(os.getpid())]
        output: IO[bytes] | None = open(log, "wb") if log is not None else None  # noqa: SIM115  # closed below, after the fork
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C meant for us must not stop it before its requests ended
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def listening(self) -> Listening | None:
        """Where it listens, None while it does not yet. Raises StartError when it ended."""
        if (status := self._process.poll()) is not None:
            raise StartError(f"the router ended with status {status}{self._last_words()}")
        try:
            fields = json.loads(self._ready.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return Listening(fields["address"], fields["http"], fields["metrics"])

    def stop(self, patience: float) -> None:
        """Ask it to stop, wait until its requests ended, at most `patience` seconds. Safe to repeat."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
        self._ready.unlink(missing_ok=True)

    def _last_words(self) -> str:
        if self._log is None:
            return ", see its log above"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

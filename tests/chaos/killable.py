"""Processes that are killed with SIGKILL and started again at the same address: a Redis with its file, and routers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from tests.router.store.servers import Server, free_port, started


class Killable(Protocol):
    """A process of the cluster under test."""

    name: str

    def kill(self) -> None:
        """SIGKILL, now."""

    def start(self) -> None:
        """Start it again; returns once it answers."""


class KillableRedis:
    """A server that writes to its append-only file before it answers, as an embedded one does."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._running: AbstractContextManager[Server] | None = None
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where it is, before and after a restart."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """See `Killable`."""
        options = ("--appendonly", "yes", "--appendfsync", "always")
        self._running = started(self._folder, *options, port=self._port)
        self._server = self._running.__enter__()

    def kill(self) -> None:
        """See `Killable`."""
        assert self._server is not None, "it does not run"
        self._server.kill()

    def stop(self) -> None:
        """For good."""
        if self._running is not None:
            self._running.__exit__(None, None, None)


class KillableRouter:
    """A router in a process of its own."""

    def __init__(self, name: str, folder: Path, **settings: Any) -> None:
        self.name, self._folder = name, folder
        self.address = f"127.0.0.1:{free_port()}"
        self._ready = folder / f"{name}.ready"
        port = int(self.address.rpartition(":")[2])
        usual = {
            "port": port,
            "http_port": -1,
            "metrics_port": -1,
            "ready_file": str(self._ready),
            "log_level": "warning",
        }
        self._config = folder / f"{name}.json"
        self._config.write_text(json.dumps({**usual, "ready_file": str(self._ready), "router_id": name, **settings}))
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it and do not wait."""
        self._ready.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "shoal.router", "--config", str(self._config)]
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(self, seconds: float = 60.0) -> None:
        """Until it listens."""
        give_up = time.monotonic() + seconds
        while not self._ready.exists():
            assert self._process is not None, "it was not begun"
            assert self._process.poll() is None, f"{self.name} ended: see {self._folder / self.name}.log"
            assert time.monotonic() < give_up, f"{self.name} does not listen"
            time.sleep(0.05)

    def start(self) -> None:
        """See `Killable`. A router that cannot reach Redis at its start ends, and is started again as a supervisor
        would."""
        while True:
            self.begin()
            try:
                self.wait()
                return
            except AssertionError:
                if self._process is None or self._process.poll() is None:
                    raise

    def kill(self) -> None:
        """See `Killable`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

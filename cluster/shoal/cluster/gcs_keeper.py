"""Keeps the control service (GCS) of our own Ray running: it is started again when it dies, on the same port.

    keeper = GcsKeeper(pid, "10.0.0.1:6379", on_restart)     # of the one that Ray started
    keeper.stop()                                            # before Ray itself is stopped

What it knows is on disk (`ray_session`), so the next one goes on where the last one ended. While none runs, actors live
and are called as before, and nothing of a request passes through it; only starting, finding and ending actors waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import psutil

from shoal.cluster.processes import tied

_DELAYS = (0.0, 0.2, 1.0, 5.0)
"""Seconds before restart 1, 2, 3 and all later ones; one that lived for a minute begins anew."""


class GcsKeeper:
    """Watches one process and those that follow it, from a thread: the kernel ends a child with what forked it."""

    def __init__(self, pid: int, address: str, on_restart: Callable[[int], None] = lambda _: None) -> None:
        """`address` is where it listens, `host:port`. `on_restart(pid)` is called from the thread, with the new one."""
        port = address.rpartition(":")[2]
        command = psutil.Process(pid).cmdline()
        self._command = [f"--gcs_server_port={port}" if "--gcs_server_port=" in a else a for a in command]
        self._pid, self._on_restart = pid, on_restart
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._keep, name="gcs-keeper", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the one that runs, or that ended last."""
        return self._pid

    def stop(self) -> None:
        """Let it die from now on. The one that Ray started is Ray's to end, ours ends here. Safe to repeat."""
        if not self._thread.is_alive():
            return
        os.eventfd_write(self._stopping, 1)
        self._thread.join()
        os.close(self._stopping)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _keep(self) -> None:
        restarts = 0
        while True:
            began = time.monotonic()
            if not self._ended():
                return
            if self._process is not None:
                self._process.wait()
            restarts = 0 if time.monotonic() - began > 60.0 else restarts
            if self._told_to_stop(_DELAYS[min(restarts, len(_DELAYS) - 1)]):
                return
            restarts += 1
            with contextlib.suppress(OSError):  # no memory for a process just now: after the next delay
                self._process = subprocess.Popen(
                    tied(self._command, signal.SIGKILL),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # it has log files of its own
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                self._pid = self._process.pid
                self._on_restart(self._pid)

    def _ended(self) -> bool:
        """Wait for its end; False when we are told to stop before that."""
        try:
            running = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return True
        try:
            ready, _, _ = select.select([running, self._stopping], [], [])
            return self._stopping not in ready
        finally:
            os.close(running)

    def _told_to_stop(self, within: float) -> bool:
        return bool(select.select([self._stopping], [], [], within)[0])

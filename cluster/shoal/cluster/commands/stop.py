"""`shoal stop`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from shoal.cluster import runfile
from shoal.cluster.config import Settings
from shoal.cluster.errors import ClusterError, NotRunningError


def run(settings: Settings, now: bool) -> None:
    """Signal the running cluster and wait until it let go of its state directory. Raises NotRunningError."""
    config = settings.cluster()
    state_dir = Path(config.state_dir)
    pid = runfile.owner(state_dir)
    if pid is None:
        raise NotRunningError(f"no cluster runs from {state_dir}")
    os.kill(pid, signal.SIGTERM)
    if now:
        time.sleep(0.5)  # the first signal must have been taken: it begins the stop that the second one cuts short
        _signal_if_alive(pid)
    patience = config.stop_grace + 90.0
    give_up = time.monotonic() + patience
    while runfile.owner(state_dir) == pid:
        if time.monotonic() > give_up:
            raise ClusterError(f"process {pid} did not stop within {patience:g} s: `shoal stop --now` stops it at once")
        time.sleep(0.1)
    print(f"stopped the cluster of process {pid}")


def _signal_if_alive(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return

"""`shoal chaos`: break things on purpose, in a cluster that was started with `cluster.chaos`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from shoal.cluster import runfile
from shoal.cluster.admin_client import admin
from shoal.cluster.config import Settings
from shoal.cluster.errors import ClusterError, ConfigError
from shoal.proto.v1 import admin_pb2 as pb

WORKER_FAULTS = ("kill", "stop", "delay", "drop", "corrupt")
HERE_FAULTS = ("redis", "disk")

_LEAVE = 1 << 20  # bytes that a full disk still has


def run(settings: Settings, fault: str, worker: str, seconds: float, amount: float) -> None:
    """One fault. The running cluster's own settings say whether it may be. Raises ClusterError."""
    if fault in WORKER_FAULTS:
        number = pb.Fault.Value(f"FAULT_{fault.upper()}")
        with admin(settings) as client:
            client.inject(pb.InjectRequest(fault=number, worker_id=worker, seconds=seconds, amount=amount))
    elif fault in HERE_FAULTS:
        state_dir = Path(settings.cluster().state_dir)
        if not runfile.read(state_dir).chaos:
            raise ConfigError("start the cluster with cluster.chaos = true to break things")
        with _away(state_dir) if fault == "redis" else _full(state_dir):
            time.sleep(seconds)
    else:
        raise ConfigError(f"no such fault: {fault}; there are {', '.join((*WORKER_FAULTS, *HERE_FAULTS))}")
    print(f"{fault}: done")


@contextlib.contextmanager
def _away(state_dir: Path) -> Iterator[None]:
    """The embedded Redis is stopped: it neither answers nor refuses."""
    try:
        pid = int((state_dir / "redis" / "redis.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
    except (OSError, ValueError) as error:
        raise ClusterError(f"there is no embedded Redis in {state_dir}: {error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _full(state_dir: Path) -> Iterator[None]:
    """The file system of the state directory is full, but for a little."""
    ballast = state_dir / ".ballast"
    facts = os.statvfs(state_dir)
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, facts.f_bavail * facts.f_frsize - _LEAVE))
        yield
    except OSError as error:
        raise ClusterError(f"the disk could not be filled: {error}") from error
    finally:
        ballast.unlink(missing_ok=True)

"""What a running `shoal serve` leaves in its state directory for `shoal status`, `chat` and `stop`.

`serve.lock` is locked for exactly as long as it lives; `serve.json` says where things are. Both are readable by their
owner only: the address of the embedded Redis holds its password.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal.cluster.errors import NotRunningError, StartError


@dataclass(frozen=True, slots=True)
class RunFile:
    """One running cluster."""

    pid: int
    started: float
    """Unix time, seconds."""
    router: str
    """`host:port` of the router's gRPC server."""
    http: str
    """`host:port` of its HTTP server; empty when there is none."""
    metrics: str
    """`host:port` of the router's /metrics; empty when there is none."""
    redis_url: str
    ray_address: str
    model: str
    groups: tuple[str, ...]
    logs: str
    """Directory with the workers' logs."""
    chaos: bool = False
    """Whether `shoal chaos` may break things in it."""

    def write(self, state_dir: Path) -> None:
        """Replace the file at once: a reader sees the old one or the new one."""
        temporary = state_dir / f".serve.json.{os.getpid()}"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)
        os.replace(temporary, state_dir / "serve.json")


@contextlib.contextmanager
def owned(state_dir: Path) -> Iterator[Path]:
    """Hold the state directory, made if it is missing. Raises StartError when another cluster holds it."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"the state directory {state_dir} cannot be used: {error.strerror}") from error
    try:
        _lock(lock, state_dir)
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        (state_dir / "serve.json").unlink(missing_ok=True)
        yield state_dir
    finally:
        with contextlib.suppress(OSError):
            if owner(state_dir) == os.getpid():
                (state_dir / "serve.json").unlink(missing_ok=True)
        os.close(lock)


def _lock(lock: int, state_dir: Path) -> None:
    give_up = time.monotonic() + 0.5  # `owner` of another process holds the lock for an instant to look at it
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < give_up:
                time.sleep(0.05)
                continue
        raise StartError(
            f"a cluster already runs from {state_dir}: `shoal stop` it, or give this one another cluster.state_dir"
        )


def owner(state_dir: Path) -> int | None:
    """Process id of the cluster that runs from `state_dir`, None when none does."""
    try:
        lock = os.open(state_dir / "serve.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(lock, 32).decode().strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(lock)
    return None


def read(state_dir: Path) -> RunFile:
    """The running cluster. Raises NotRunningError when none runs, or when it is not up yet."""
    pid = owner(state_dir)
    if pid is None:
        raise NotRunningError(f"no cluster runs from {state_dir}: start one with `shoal serve`")
    try:
        fields = json.loads((state_dir / "serve.json").read_text())
    except FileNotFoundError:
        raise NotRunningError(f"the cluster of process {pid} is still starting, or already stopping") from None
    return RunFile(**{**fields, "groups": tuple(fields["groups"])})

"""This process's connection to Ray: a Ray of our own on this machine, or a cluster that exists.

Ray is imported only after its environment is set, because it reads some variables at import.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog

from shoal.cluster.errors import StartError
from shoal.cluster.processes import descendants, is_alive, kill_descendants
from shoal.cluster.topology import MOST_PLACES, PLACES

log = structlog.get_logger()

_PRESTARTED = 4

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Of a Ray of our own: actors are told and answer a few kilobytes, tokens and weights never pass through it."""


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connection to Ray."""

    address: str
    """`host:port` of its control service."""
    home: str
    """Address of the node that this process is on."""
    node_id: str
    logs: str
    """Directory with the logs of this node's processes."""
    resources: Mapping[str, float]
    local: bool
    """Whether it is ours to stop."""
    gcs: int = 0
    """Process of its control service, 0 when it is not ours."""
    raylet: int = 0
    """Process that workers live below, 0 when it is not ours."""

    def lives(self) -> bool:
        """Whether workers can live on. A control service that is away comes back, a raylet does not."""
        return not self.local or is_alive(self.raylet)


def connect(address: str, namespace: str, state_dir: Path) -> RaySession:
    """Start a Ray here, with room for any number of workers, when `address` is empty, else connect to that one.

    Raises StartError. From the main thread: the kernel ends the processes of our own Ray with the thread that forked
    them.
    """
    local = not address
    _set_environment(state_dir, local)
    import ray

    options: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    if local:
        cpus = min(_PRESTARTED, os.cpu_count() or 1)  # Ray starts as many idle processes; workers ask for none of them
        options |= {"num_cpus": cpus, "resources": {PLACES: MOST_PLACES}}
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    on_term = signal.getsignal(signal.SIGTERM)
    before = [process.pid for process in descendants()]
    for attempts_left in (1, 0) if local else (0,):
        try:
            if local:
                options["_system_config"] = _kept_on_disk(state_dir / "ray")
            context: Any = ray.init(address=address or "local", **options)
            break
        except Exception as error:
            if attempts_left:
                # Ray gives its own processes 30 s to come up, too little on a machine that is very busy just now.
                log.warning("Ray did not start, trying once more", why=_first_line(error))
                kill_descendants(keep=before)
                continue
            where = f"connect to Ray at {address}" if address else "start Ray"
            raise StartError(f"cannot {where}: {type(error).__name__}: {_first_line(error)}") from error
        finally:
            signal.signal(signal.SIGTERM, on_term)  # Ray puts its own in its place
    from shoal.cluster.ray_fleet import node_addresses

    runtime = ray.get_runtime_context()
    node_id = runtime.get_node_id()
    session_dir = context.address_info["session_dir"]
    return RaySession(
        address=runtime.gcs_address,
        home=node_addresses()[node_id],
        node_id=node_id,
        logs=str(Path(session_dir) / "logs"),
        resources=ray.cluster_resources(),  # type: ignore[no-untyped-call]  # ray publishes no type for it
        local=local,
        gcs=_own("gcs_server", session_dir) if local else 0,
        raylet=_own("raylet", session_dir) if local else 0,
    )


def disconnect() -> None:
    """Leave Ray; one of our own stops with that. Safe to repeat."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def _set_environment(state_dir: Path, local: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not local:
        return  # how to authenticate there is said by whoever runs it: RAY_AUTH_MODE, RAY_AUTH_TOKEN(_PATH)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the ranks' exchange stays on this machine
    # Ray listens on the machine's own address, so strangers must not be able to run code in it.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        path = state_dir / "ray.token"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _kept_on_disk(directory: Path) -> dict[str, str]:
    """Options that let what our own Ray's control service knows survive it, unless somebody chose another place. The
    folder belongs to one start of Ray: actors of the last one are gone."""
    if {"RAY_REDIS_ADDRESS", "RAY_gcs_storage"} & set(os.environ):
        return {}
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return {"gcs_storage": "rocksdb", "gcs_storage_path": str(directory)}


def _own(name: str, session_dir: str) -> int:
    """Process id of a part of the Ray that was just started from here."""
    for process in descendants():
        with contextlib.suppress(psutil.Error):
            if process.name() == name and session_dir in " ".join(process.cmdline()):
                return process.pid
    raise StartError(f"Ray's {name} ended at once")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"

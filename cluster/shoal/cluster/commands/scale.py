"""`shoal scale` and `shoal drain`."""

from __future__ import annotations

import time

from shoal.cluster.admin_client import AdminClient, admin
from shoal.cluster.config import Settings
from shoal.cluster.errors import ConfigError
from shoal.proto.v1 import admin_pb2 as pb


def scale(settings: Settings, ep_size: int | None, groups: int | None, wait: float, router: str | None = None) -> None:
    """Want another size, and wait for it up to `wait` seconds. Raises ClusterError."""
    if ep_size is None and groups is None:
        raise ConfigError("scale: say --ep-size, --groups or both")
    with admin(settings, router) as client:
        wanted = client.scale(ep_size, groups)
        print(f"wanted: {wanted.groups} x {wanted.ep_size} workers")
        _wait(client, wait)


def drain(settings: Settings, worker: str, wait: float, router: str | None = None) -> None:
    """Send a worker away; another takes its place. A number names the rank of the first group. Raises ClusterError."""
    with admin(settings, router) as client:
        name = _named(client.cluster(), worker)
        client.drain(name)
        print(f"{name} leaves")
        _wait(client, wait)


def _named(cluster: pb.GetClusterResponse, worker: str) -> str:
    if not worker.isdigit():
        return worker
    for info in cluster.groups[0].workers:
        if info.HasField("rank") and info.rank == int(worker):
            return info.worker_id
    raise ConfigError(f"group {cluster.groups[0].group} has no rank {worker}")


def _wait(client: AdminClient, seconds: float) -> None:
    if seconds <= 0:
        return
    begin = time.monotonic()
    time.sleep(0.2)  # the controller has begun by then
    for group in client.wait(seconds).groups:
        members = [w for w in group.workers if w.stage == pb.WORKER_STAGE_MEMBER]
        names = ", ".join(w.worker_id for w in members)
        pause = max((w.pause_seconds for w in members), default=0.0)
        print(f"group {group.group}: epoch {group.epoch}, {len(members)} workers ({names}), last pause {pause:.3f} s")
    print(f"done after {time.monotonic() - begin:.1f} s")

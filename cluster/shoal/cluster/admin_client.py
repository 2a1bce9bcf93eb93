"""The controller's admin API as the command line calls it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from shoal.cluster import runfile
from shoal.cluster.config import Settings
from shoal.cluster.errors import CallError, NotRunningError
from shoal.cluster.own_access import OwnAccess
from shoal.proto.v1 import admin_pb2 as pb
from shoal.proto.v1.admin_pb2_grpc import AdminServiceStub
from shoal.wire.credentials import open_sync_channel
from shoal.wire.registry import CONTROLLER_KEY
from shoal.wire.tls import INTERNAL_NAME, internal_client

T = TypeVar("T")

_TIMEOUT = 10.0  # seconds for an answer; the controller never waits for anything itself
_PATIENCE = 15.0  # seconds for a controller that Ray is starting again
_POLL = 0.1


@contextlib.contextmanager
def admin(settings: Settings, router: str | None = None) -> Iterator[AdminClient]:
    """The controller of the cluster that runs here, or of the one whose Redis is configured; or whatever is behind the
    `router` at that address, which wants to know who asks. Raises ClusterError."""
    if router:
        access = OwnAccess.of(settings)
        client = AdminClient(lambda: access.router(router), access.metadata, "router")
    else:
        config = settings.cluster()
        redis_url = config.redis_url or runfile.read(Path(config.state_dir)).redis_url
        known = internal_client(settings.part("tls"))
        client = AdminClient(lambda: open_sync_channel(_address(redis_url), known, INTERNAL_NAME), (), "controller")
    try:
        yield client
    finally:
        client.close()


class AdminClient:
    """Connects anew when the controller moved. Raises CallError when it refuses or stays away."""

    def __init__(self, connect: Callable[[], grpc.Channel], metadata: tuple[tuple[str, str], ...], asked: str) -> None:
        """`metadata` goes with every call; `asked`: who is called, for people."""
        self._connect, self._asked = connect, asked
        self._usual: dict[str, Any] = {"timeout": _TIMEOUT, "metadata": metadata}
        self._channel: grpc.Channel | None = None

    def cluster(self) -> pb.GetClusterResponse:
        """Every group with its workers."""
        return self._call(lambda stub: stub.GetCluster(pb.GetClusterRequest(), **self._usual))

    def scale(self, ep_size: int | None, groups: int | None) -> pb.ScaleResponse:
        """Want another size; what is None stays."""
        request = pb.ScaleRequest(ep_size=ep_size, groups=groups)
        return self._call(lambda stub: stub.Scale(request, **self._usual))

    def drain(self, worker_id: str) -> None:
        """Send a worker away."""
        self._call(lambda stub: stub.Drain(pb.DrainRequest(worker_id=worker_id), **self._usual))

    def rebalance(self, group: str) -> pb.RebalanceResponse:
        """Move experts by their load."""
        return self._call(
            lambda stub: stub.Rebalance(pb.RebalanceRequest(group=group), **{**self._usual, "timeout": 6 * _TIMEOUT})
        )

    def inject(self, request: pb.InjectRequest) -> None:
        """Break something on purpose."""
        self._call(lambda stub: stub.Inject(request, **self._usual))

    def wait(self, timeout: float) -> pb.GetClusterResponse:
        """Until every group is what is wanted. Raises CallError when one fails, or when it takes too long."""
        give_up = time.monotonic() + timeout
        while True:
            cluster = self.cluster()
            unsettled = [group for group in cluster.groups if not settled(group)]
            if not unsettled:
                return cluster
            failed = [g for g in unsettled if g.phase == pb.GROUP_PHASE_FAILED]
            if failed or time.monotonic() > give_up:
                group = (failed or unsettled)[0]
                phase = pb.GroupPhase.Name(group.phase).removeprefix("GROUP_PHASE_").lower()
                raise CallError(f"group {group.group} is {phase}: {group.reason or 'it takes long'}")
            time.sleep(_POLL)

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _call(self, call: Callable[[AdminServiceStub], T]) -> T:
        give_up = time.monotonic() + _PATIENCE
        while True:
            if self._channel is None:
                self._channel = self._connect()
            try:
                return call(AdminServiceStub(self._channel))
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call):
                    raise CallError(f"the call to the {self._asked} failed: {error}") from error
                away = error.code() is grpc.StatusCode.UNAVAILABLE and "not done" not in (error.details() or "")
                if not away or time.monotonic() > give_up:
                    raise CallError(f"{error.code().name}: {error.details()} ({self._asked})") from error
            self.close()
            time.sleep(_POLL)


def settled(group: pb.GroupInfo) -> bool:
    """Whether a group is what is wanted: it serves with as many members, and nobody comes or goes."""
    if group.phase == pb.GROUP_PHASE_STOPPED:
        return True
    members = [w for w in group.workers if w.stage == pb.WORKER_STAGE_MEMBER]
    moving = any(w.stage in (pb.WORKER_STAGE_LEAVING, pb.WORKER_STAGE_STARTING) for w in group.workers)
    return group.phase == pb.GROUP_PHASE_READY and len(members) == group.ep_size and not moving


def _address(redis_url: str) -> str:

    from shoal.router.store.away import ABSENT
    from shoal.router.store.blocking import connect_blocking

    try:
        with contextlib.closing(connect_blocking(redis_url, _TIMEOUT)) as client:
            raw = client.get(CONTROLLER_KEY)
    except ABSENT as error:
        raise CallError(f"Redis, which says where the controller is, does not answer: {error}") from error
    if raw is None:
        raise NotRunningError("no controller is announced in Redis: is the cluster running?")
    return raw.decode() if isinstance(raw, bytes) else str(raw)

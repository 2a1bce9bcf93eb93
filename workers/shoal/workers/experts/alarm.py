"""Waking a group that sleeps.

When no rank has work, all agree to sleep and no collective is outstanding. The rank that first has work wakes the
others with `Wake(epoch, step)` and begins that step; a wake that arrives before its receiver fell asleep is remembered,
so none is lost. Nobody spins.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import grpc
import structlog

from shoal.proto.v1 import worker_pb2, worker_pb2_grpc
from shoal.wire.credentials import open_sync_channel
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client

log = structlog.get_logger()


class Alarm:
    """One rank's bell, and the way to ring those of its peers. Thread-safe."""

    def __init__(self, tls: TlsConfig | None = None) -> None:
        """`tls`: how the peers are reached; by default in the clear."""
        self._tls = tls or TlsConfig()
        self._condition = threading.Condition()
        self._epoch = -1
        self._woken_step = -1
        self._rung = False
        self._channels: list[grpc.Channel] = []
        self._stubs: list[worker_pb2_grpc.WorkerServiceStub] = []

    def connect(self, epoch: int, peers: Sequence[str]) -> None:
        """Serve `epoch`; `peers` are the gRPC addresses of the other ranks."""
        self.disconnect()
        with self._condition:
            self._epoch, self._woken_step = epoch, -1
        self._channels = [open_sync_channel(address, internal_client(self._tls), INTERNAL_NAME) for address in peers]
        self._stubs = [worker_pb2_grpc.WorkerServiceStub(channel) for channel in self._channels]

    def disconnect(self) -> None:
        """Close the channels to the peers."""
        for channel in self._channels:
            channel.close()
        self._channels, self._stubs = [], []

    def ring(self) -> None:
        """Something happened on this rank: a request, a cancel, a stop."""
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def woken(self, epoch: int, step: int) -> bool:
        """A peer begins `step`. False when it lives in another epoch."""
        with self._condition:
            if epoch != self._epoch:
                return False
            self._woken_step = max(self._woken_step, step)
            self._condition.notify_all()
            return True

    def sleep(self, next_step: int, longest: float | None = None) -> None:
        """Wait until this rank or a peer has work for `next_step`; wakes the peers when it was this rank, as it is
        after `longest` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._rung or self._woken_step >= next_step, longest)
            self._rung = False
            epoch, peers_know = self._epoch, self._woken_step >= next_step
        if not peers_know:
            self._wake_peers(epoch, next_step)

    def _wake_peers(self, epoch: int, step: int) -> None:
        """Without waiting for answers: a peer that cannot be reached is noticed by the step's first collective."""
        for stub in self._stubs:
            call = stub.Wake.future(worker_pb2.WakeRequest(epoch=epoch, step=step), timeout=10.0, wait_for_ready=True)
            call.add_done_callback(_log_failure)


def _log_failure(call: grpc.Future[worker_pb2.WakeResponse]) -> None:
    error = None if call.cancelled() else call.exception()
    if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.CANCELLED:
        return  # the epoch was over before it answered
    if error is not None:
        log.warning("a peer could not be woken", error=str(error))

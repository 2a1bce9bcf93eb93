"""Hears of a worker's death by the end of a socket: under a millisecond, where Ray takes more than a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from shoal.cluster.group_state import Mood, Word
from shoal.proto.v1 import watch_pb2
from shoal.proto.v1.watch_pb2_grpc import WorkerWatchServiceStub
from shoal.wire.credentials import open_channel
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client
from shoal.workers.experts.group import WorkerFacts

PERIOD_MS = 200
"""Between two heartbeats."""

_KNOCK = 0.5  # seconds that a living machine may take to accept or refuse a connection
_AGAIN = 0.05  # seconds between two attempts at a worker that lives but does not answer

_MOODS = {
    watch_pb2.WORKER_STATE_PAUSED: Mood.RESTING,
    watch_pb2.WORKER_STATE_BROKEN: Mood.RESTING,
    watch_pb2.WORKER_STATE_UNFIT: Mood.UNFIT,
    watch_pb2.WORKER_STATE_ENDED: Mood.LEAVING,
}


class WorkerWatch:
    """Implements `controller.Watch` over gRPC."""

    def __init__(self, tls: TlsConfig) -> None:
        self._tls = tls

    async def __call__(self, facts: WorkerFacts) -> AsyncIterator[Word]:
        """Ends when nobody listens at the worker's address any more. A stream that breaks while somebody does is begun
        again: the network's fault, or a process that is stopped, which is for the listener's heartbeats to judge."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with open_channel(
                    facts.address, credentials=internal_client(self._tls), name=INTERNAL_NAME
                ) as channel:
                    stub = WorkerWatchServiceStub(channel)
                    async for word in stub.Watch(watch_pb2.WatchRequest(period_ms=PERIOD_MS)):
                        yield word_of(facts.worker_id, word)
            if not await _listens(facts.address):
                return
            await asyncio.sleep(_AGAIN)


def word_of(name: str, word: watch_pb2.WatchResponse) -> Word:
    """What a message means for the group."""
    mood = Mood.LEAVING if word.leaving else _MOODS.get(word.state, Mood.SERVING)
    busy = word.running + word.waiting > 0
    return Word(name, word.epoch, mood, busy, word.why, word.draining, word.kv_used, word.queue_seconds)


async def _listens(address: str) -> bool:
    """False only when the connection is refused: the process is gone."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_KNOCK):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return False
    except OSError:  # TimeoutError among them
        return True
    writer.close()
    return True

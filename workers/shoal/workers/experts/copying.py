"""Experts as bytes on their way from one worker to another: asked for, given, checked.

The bytes are those that a bank holds, packed for its device, so that nothing is packed again. Both ends compare how
they lay experts out before anything is sent; each expert carries a digest, and one that does not fit is not used.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog

from shoal.proto.v1 import experts_pb2 as pb
from shoal.proto.v1 import experts_pb2_grpc
from shoal.wire.credentials import open_sync_channel
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client
from shoal.workers.errors import PeerError

log = structlog.get_logger()

PIECE = 2**20
"""Bytes of one message."""

_ANSWER = 1.0  # seconds for a peer to say what it has
_SLOWEST = 20e6  # bytes a second below which a peer is no help


def digest_of(layer: int, expert: int, data: bytes | bytearray) -> bytes:
    """Of everything that must be right: which expert it is, and each of its bytes."""
    return hashlib.blake2b(b"%d/%d/" % (layer, expert) + data, digest_size=16).digest()


class Holder(Protocol):
    """Who gives: methods may be called from any thread."""

    @property
    def layout(self) -> str:
        """How experts lie in its memory."""

    def held(self) -> list[tuple[int, ...]]:
        """Experts in memory by layer."""

    def bytes_of(self, layer: int, expert: int) -> bytes | None:
        """A copy of one; None when it is not there any more."""


class Giver(experts_pb2_grpc.ExpertServiceServicer):
    """Gives peers what they ask for, one expert at a time so that it takes little from who is served."""

    def __init__(self, holder: Callable[[], Holder | None]) -> None:
        """`holder` is None before the worker is prepared."""
        self._holder = holder
        self._copying = ThreadPoolExecutor(max_workers=1, thread_name_prefix="give-expert")

    async def ListExperts(  # noqa: N802  # gRPC's name
        self, request: pb.ListExpertsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListExpertsResponse:
        """See experts.proto."""
        holder = await self._agreed(request.layout, context)
        return pb.ListExpertsResponse(layers=[pb.HeldExperts(experts=ids) for ids in holder.held()])

    async def ReadExperts(  # noqa: N802  # as above
        self, request: pb.ReadExpertsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ReadExpertsResponse]:
        """See experts.proto."""
        holder, layer = await self._agreed(request.layout, context), request.layer
        loop = asyncio.get_running_loop()
        for expert in request.experts:
            data, digest = await loop.run_in_executor(self._copying, _copied, holder, layer, expert)
            for first in range(0, len(data), PIECE):
                last = first + PIECE >= len(data)
                yield pb.ReadExpertsResponse(
                    expert=expert, data=data[first : first + PIECE], digest=digest if last else b""
                )

    def close(self) -> None:
        """Give nothing more."""
        self._copying.shutdown(wait=False, cancel_futures=True)

    async def _agreed(self, layout: str, context: grpc.aio.ServicerContext[Any, Any]) -> Holder:
        holder = self._holder()
        if holder is None or holder.layout != layout:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "experts are laid out in another way here")
            raise AssertionError("abort raises")
        return holder


class Peer:
    """One worker that may give experts. Belongs to one thread."""

    def __init__(self, address: str, layout: str, tls: TlsConfig) -> None:
        self.address, self._layout = address, layout
        self._channel = open_sync_channel(address, internal_client(tls), INTERNAL_NAME)
        self._stub = experts_pb2_grpc.ExpertServiceStub(self._channel)

    def held(self) -> list[frozenset[int]]:
        """What it has by layer. Raises PeerError."""
        try:
            answer = self._stub.ListExperts(pb.ListExpertsRequest(layout=self._layout), timeout=_ANSWER)
        except grpc.RpcError as error:
            raise PeerError(f"worker {self.address} does not say which experts it has: {_told(error)}") from error
        return [frozenset(layer.experts) for layer in answer.layers]

    def read(self, layer: int, experts: Sequence[int], size: int) -> Iterator[tuple[int, bytearray]]:
        """Those of `experts` that it still has, `size` bytes each. Raises PeerError, also for a damaged one; what came
        before it is whole."""
        request = pb.ReadExpertsRequest(layout=self._layout, layer=layer, experts=experts)
        data = bytearray()
        try:
            for piece in self._stub.ReadExperts(request, timeout=_ANSWER + len(experts) * size / _SLOWEST):
                data += piece.data
                if piece.expert not in experts or len(data) > size:
                    raise PeerError(f"worker {self.address} sent what it was not asked for")
                if not piece.digest:
                    continue
                if len(data) != size or piece.digest != digest_of(layer, piece.expert, data):
                    raise PeerError(f"expert {piece.expert} of layer {layer} came damaged from worker {self.address}")
                yield piece.expert, data
                data = bytearray()
        except grpc.RpcError as error:
            raise PeerError(f"worker {self.address} gives no more experts: {_told(error)}") from error

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()


def _copied(holder: Holder, layer: int, expert: int) -> tuple[bytes, bytes]:
    data = holder.bytes_of(layer, expert) or b""
    return data, digest_of(layer, expert, data)


def _told(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)

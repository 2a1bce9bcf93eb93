"""The worker's gRPC server: one stream per router, on an event loop of its own thread.

The engine's thread hands messages over with `send`; a router that reads too slowly is cut off, it never makes the
engine wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog

from shoal.proto.v1 import experts_pb2_grpc, watch_pb2, watch_pb2_grpc, worker_pb2_grpc
from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1.constraint_pb2 import Constraint
from shoal.wire.credentials import add_port, join_address
from shoal.wire.internal import only_internal
from shoal.wire.options import server_options
from shoal.wire.tls import TlsConfig, internal_server
from shoal.workers.compiling import Compiling
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.errors import NotReadyError, OverloadedError, RequestError, StaleAttemptError, WorkerError
from shoal.workers.experts.copying import Giver
from shoal.workers.ports import first_free

log = structlog.get_logger()

HEARTBEAT = 0.2
"""Seconds between two words to a listener that asks for no other period."""

RETRY_AFTER_MS = 200
"""What an overloaded worker suggests."""


class Service(Protocol):
    """What the server needs from the worker. Called on the server's event loop, so nothing but `begin_constraint` may
    block."""

    def begin_constraint(self, constraint: Constraint, generated: Sequence[int]) -> Cursor: ...
    def welcome(self) -> pb.Welcome: ...
    def submit(self, submit: pb.Submit, stream: str, constraint: Cursor | None) -> pb.Accepted: ...
    def cancel(self, cancel: pb.Cancel) -> None: ...
    def hang_up(self, stream: str) -> None: ...
    def woken(self, epoch: int, step: int) -> bool: ...
    def status_message(self) -> pb.GetStatusResponse: ...
    def word(self) -> watch_pb2.WatchResponse: ...


class Outbox:
    """Messages waiting for one router. Only the event loop's thread touches it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[pb.ConnectResponse] = deque()
        self._news = asyncio.Event()
        self.overflowed = False
        self.wants_kv_events = False

    def put(self, message: pb.ConnectResponse) -> None:
        """Never waits; past the limit the outbox is overflowed for good."""
        if len(self._messages) >= self._limit:
            self.overflowed = True
        else:
            self._messages.append(message)
        self._news.set()

    async def get(self) -> pb.ConnectResponse | None:
        """The next message; None once overflowed."""
        while not self._messages and not self.overflowed:
            self._news.clear()
            await self._news.wait()
        return None if self.overflowed else self._messages.popleft()


class WorkerServer(worker_pb2_grpc.WorkerServiceServicer, watch_pb2_grpc.WorkerWatchServiceServicer):
    """Serves `Service` over gRPC on its own thread."""

    def __init__(
        self,
        service: Service,
        host: str,
        ports: Sequence[int],
        outbox_limit: int,
        tls: TlsConfig | None = None,
        giver: Giver | None = None,
    ) -> None:
        """Takes the first of `ports` that is free, 0 is any; in the clear without `tls`. Peers are given experts."""
        self._giver = giver
        self._tls = tls or TlsConfig()
        self._service = service
        self._host, self._ports = host, ports
        self._outbox_limit = outbox_limit
        self._outboxes: dict[str, Outbox] = {}
        self._watchers: set[asyncio.Event] = set()
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="worker-grpc", daemon=True)
        self._server: grpc.aio.Server | None = None
        self._compilers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")
        self.address = ""

    def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(timeout=30)

    def stop(self) -> None:
        """Close every stream and end the thread. Safe to repeat."""
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.stop(0.5), self._loop).result(timeout=30)
            self._server = None
        self._compilers.shutdown(wait=False, cancel_futures=True)
        if self._giver is not None:
            self._giver.close()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            self._loop.close()

    def send(self, stream: str, message: pb.ConnectResponse) -> None:
        """Queue a message for a router, from any thread. Unknown streams hear nothing."""
        self._loop.call_soon_threadsafe(self._deliver, stream, message)

    def hand_over(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        """Build messages on this server's thread and queue each for its stream, from any thread."""
        self._loop.call_soon_threadsafe(self._build_and_deliver, build)

    def announce(self) -> None:
        """The worker's state changed, on any thread: those who watch hear of it now."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell_watchers)

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def _build_and_deliver(self, build: Callable[[], Mapping[str, pb.ConnectResponse]]) -> None:
        for stream, message in build().items():
            self._deliver(stream, message)

    def broadcast(self, message: pb.ConnectResponse) -> None:
        """Queue a message for every router that asked for KV events, from any thread."""
        self._loop.call_soon_threadsafe(self._deliver_to_all, message)

    def _deliver_to_all(self, message: pb.ConnectResponse) -> None:
        for outbox in self._outboxes.values():
            if outbox.wants_kv_events:
                outbox.put(message)

    def _deliver(self, stream: str, message: pb.ConnectResponse) -> None:
        outbox = self._outboxes.get(stream)
        if outbox is not None:
            outbox.put(message)

    async def _start(self) -> str:
        server = self._server = grpc.aio.server(interceptors=only_internal(self._tls), options=server_options())
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, server)
        watch_pb2_grpc.add_WorkerWatchServiceServicer_to_server(self, server)
        if self._giver is not None:
            experts_pb2_grpc.add_ExpertServiceServicer_to_server(self._giver, server)
        credentials = internal_server(self._tls)
        port = first_free(self._ports, lambda port: add_port(server, self._host, port, credentials))
        await self._server.start()
        return join_address(self._host, port)

    # -- the service ----------------------------------------------------------------------------------------------

    async def Watch(  # noqa: N802  # gRPC's name
        self, request: watch_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[watch_pb2.WatchResponse]:
        """The worker's word, at once when it changes and as a heartbeat in between, until the listener goes."""
        period = request.period_ms / 1000 if request.period_ms else HEARTBEAT
        news = asyncio.Event()
        self._watchers.add(news)
        try:
            while True:
                news.clear()
                yield self._service.word()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(period):
                        await news.wait()
        finally:
            self._watchers.discard(news)

    async def Connect(  # noqa: N802  # gRPC's name
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ConnectResponse]:
        """One router's stream, until either end goes."""
        stream = f"stream-{next(self._numbers)}"
        outbox = self._outboxes[stream] = Outbox(self._outbox_limit)
        compiling = Compiling(self._service, self._compilers)
        reader = asyncio.create_task(self._read(stream, outbox, compiling, request_iterator))
        reader.add_done_callback(lambda task: task.cancelled() or task.exception())
        outbox_message = asyncio.create_task(outbox.get())
        try:
            while True:
                await asyncio.wait({reader, outbox_message}, return_when=asyncio.FIRST_COMPLETED)
                if outbox_message.done():
                    message = outbox_message.result()
                    if message is None:
                        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this router reads too slowly")
                        return
                    yield message
                    outbox_message = asyncio.create_task(outbox.get())
                elif reader.done():
                    return
        finally:
            reader.cancel()
            compiling.stop()
            outbox_message.cancel()
            del self._outboxes[stream]
            self._service.hang_up(stream)

    async def GetStatus(  # noqa: N802  # as above
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetStatusResponse:
        """What the worker is and does."""
        return self._service.status_message()

    async def Wake(  # noqa: N802  # as above
        self, request: pb.WakeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.WakeResponse:
        """A peer begins a step."""
        return pb.WakeResponse(joined=self._service.woken(request.epoch, request.step))

    async def _read(
        self, stream: str, outbox: Outbox, compiling: Compiling, requests: AsyncIterator[pb.ConnectRequest]
    ) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "hello":
                outbox.wants_kv_events = request.hello.kv_events
                outbox.put(pb.ConnectResponse(welcome=self._service.welcome()))
            elif kind == "submit" and request.submit.HasField("constraint"):
                compiling.begin(request.submit, partial(self._compiled, request.submit, stream, outbox))
            elif kind == "submit":
                outbox.put(self._submit(request.submit, stream))
            elif kind == "cancel":
                compiling.cancel(request.cancel)
                self._service.cancel(request.cancel)

    def _submit(self, submit: pb.Submit, stream: str, constraint: Cursor | None = None) -> pb.ConnectResponse:
        """The answer precedes every token: both go through the loop in this order."""
        try:
            return pb.ConnectResponse(accepted=self._service.submit(submit, stream, constraint))
        except Exception as error:
            return refusal(submit, error)

    def _compiled(self, submit: pb.Submit, stream: str, outbox: Outbox, cursor: Cursor | Exception) -> None:
        """A submit's constraint is ready, or cannot be made."""
        if isinstance(cursor, Exception):
            outbox.put(refusal(submit, cursor))
        else:
            outbox.put(self._submit(submit, stream, cursor))


def refusal(submit: pb.Submit, error: Exception) -> pb.ConnectResponse:
    """What a router is told instead of `Accepted`. A bug must not end the other requests of this router."""
    if isinstance(error, WorkerError):
        reason, message = refusal_of(error), str(error)
    else:
        log.error("a submit failed", request=submit.request_id, exc_info=error)
        reason, message = pb.REFUSAL_REASON_INTERNAL, "the worker failed to take the request"
    return pb.ConnectResponse(
        refused=pb.Refused(
            request_id=submit.request_id,
            attempt=submit.attempt,
            choice=submit.choice,
            reason=reason,
            message=message,
            retry_after_ms=RETRY_AFTER_MS if reason == pb.REFUSAL_REASON_OVERLOADED else 0,
        )
    )


def refusal_of(error: WorkerError) -> pb.RefusalReason.ValueType:
    """The typed reason that a router is told."""
    if isinstance(error, RequestError):
        return pb.REFUSAL_REASON_INVALID
    if isinstance(error, OverloadedError):
        return pb.REFUSAL_REASON_OVERLOADED
    if isinstance(error, StaleAttemptError):
        return pb.REFUSAL_REASON_STALE_ATTEMPT
    if isinstance(error, NotReadyError):
        return pb.REFUSAL_REASON_UNAVAILABLE
    return pb.REFUSAL_REASON_INTERNAL

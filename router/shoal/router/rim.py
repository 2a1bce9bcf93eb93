"""The rim of every RPC: who asks, deadline, errors to status, counts, one log line. Nothing else translates errors.

A stream that had begun ends with an `error` event before the status, so that a client which reads only events knows
too. Cancellation by the client, or its deadline, closes the handler's generator at once: that is what reaches the
worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf import text_format

from shoal.proto.v1 import admin_pb2
from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.door import Shown
from shoal.router.access.table import FOR_EVERYBODY, short_name
from shoal.router.metrics import Metrics
from shoal.router.protection import Protection
from shoal.wire.deadlines import deadline_of
from shoal.wire.status import Status, WireError, status_of

_log = structlog.get_logger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_Stream = Callable[[Any, _Context], AsyncGenerator[Any, None]]
_Unary = Callable[[Any, _Context], Awaitable[Any]]

_LAST_WORDS_SECONDS = 1.0  # a client that does not read is not waited for longer


class Rim(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our own services. Of others only what the table opens to everybody is served."""

    def __init__(self, metrics: Metrics, max_request_seconds: float, protection: Protection) -> None:
        self._metrics, self._protection = metrics, protection
        self._max_request_seconds = max_request_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/shoal."):
            return handler if short_name(method) in FOR_EVERYBODY else None
        coding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, handler.unary_stream), **coding)
        assert handler.unary_unary is not None, f"{method} streams requests, which the rim does not know"
        return grpc.unary_unary_rpc_method_handler(self._answering(method, handler.unary_unary), **coding)

    def _streaming(self, method: str, serve: _Stream) -> Any:
        async def handle(request: Any, context: _Context) -> None:
            last: Any = None
            async with self._watched(method, context, lambda: last):
                entering = self._protection.entering(shown_by(context), short_name(method), _about(request))
                async with entering, contextlib.aclosing(serve(request, context)) as events:
                    async for event in events:
                        await context.write(event)
                        last = event

        return handle

    def _answering(self, method: str, serve: _Unary) -> Any:
        async def handle(request: Any, context: _Context) -> Any:
            entering = self._protection.entering(shown_by(context), short_name(method), _about(request))
            async with self._watched(method, context, lambda: None), entering:
                return await serve(request, context)

        return handle

    @contextlib.asynccontextmanager
    async def _watched(self, method: str, context: _Context, last: Callable[[], Any]) -> AsyncGenerator[None, None]:
        name, began = method.rpartition("/")[2], time.monotonic()
        deadline = deadline_of(context, self._max_request_seconds)
        try:
            async with asyncio.timeout(deadline.remaining):
                yield
        except asyncio.CancelledError as error:
            self.ended(name, began, status_of(error))
            raise
        except Exception as error:
            if context.cancelled():
                self.ended(name, began, status_of(asyncio.CancelledError()))
                raise
            status = status_of(error)
            self.ended(name, began, status, error)
            if (event := last()) is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_SECONDS):
                        await context.write(error_event(event, status))
            await context.abort(status.code, status.message, status.trailing)
        else:
            self.ended(name, began, None)

    def ended(self, name: str, began: float, status: Status | None, error: Exception | None = None) -> None:
        """Count and log a call that ended, whatever it came through: with `status`, None for well."""
        code = "OK" if status is None else status.code.name
        self._metrics.requests.labels(name, code).inc()
        seconds = round(time.monotonic() - began, 4)
        self._metrics.duration.labels(name).observe(seconds)
        if status is None:
            _log.info("request_ended", method=name, code=code, seconds=seconds)
            return
        if error is not None:
            self._metrics.rejections.labels(status.reason).inc()
        expected = status.code is not grpc.StatusCode.INTERNAL
        # A plain traceback: richer ones print local variables, and those hold what people said.
        ours = isinstance(error, WireError) or error is None
        trace = {} if ours else {"traceback": "".join(traceback.format_exception(error))}
        told = _log.info if expected else _log.error
        told("request_ended", method=name, code=code, reason=status.reason, seconds=seconds, **trace)


def shown_by(context: _Context) -> Shown:
    """What an RPC brings to prove who it is from."""
    given = [str(value) for name, value in context.invocation_metadata() or () if name == "authorization"]
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"").decode("ascii", "replace")
    return Shown(joined(given), ssl.PEM_cert_to_DER_cert(pem) if pem else b"")


def joined(authorizations: Sequence[str]) -> str:
    """As one: several are none, for whoever stands before us may have looked at another one.

    >>> joined([]), joined(["Bearer a"]), joined(["Bearer a", "Bearer b"])
    ('', 'Bearer a', 'Bearer a, Bearer b')
    """
    return ", ".join(authorizations)


def _about(request: Any) -> str:
    """What a request is about, by name; what an operator asks is short, and told in full."""
    if request.DESCRIPTOR.file.name == admin_pb2.DESCRIPTOR.name:
        return text_format.MessageToString(request, as_one_line=True)
    return str(getattr(request, "session_id", "") or getattr(request, "request_id", ""))


def error_event(last: Any, status: Status) -> Any:
    """The event that ends a stream whose latest event was `last`, of the same type."""
    if isinstance(last, api.ResumeResponse):
        if last.HasField("generate"):
            return api.ResumeResponse(generate=error_event(last.generate, status))
        return api.ResumeResponse(chat=error_event(last.chat, status))
    cursor = api.Cursor(offset=last.cursor.offset, k=last.cursor.k + 1)
    error = api.Error(
        code=status.number, message=status.message, retryable=status.retryable, delivered_tokens=last.cursor.offset
    )
    if isinstance(last, api.GenerateResponse):
        return api.GenerateResponse(cursor=cursor, choice=last.choice, error=error)
    return api.ChatResponse(cursor=cursor, error=error)

"""Who may call what routers, workers and controllers serve each other: only who shows a certificate of that name.

TLS itself looks whether a CA that is believed signed the client's certificate. Where that CA signs others, too (clients
of the router, say), the name is what tells them apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from shoal.wire.tls import INTERNAL_NAME, TlsConfig

_Context = grpc.aio.ServicerContext[Any, Any]
_KINDS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class OnlyInternal(grpc.aio.ServerInterceptor):
    """Refuses every method to whoever has another name. Streams must be served by async generators."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        serve = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        make = _KINDS[handler.request_streaming, handler.response_streaming]
        wrapped: Any = (_streaming if handler.response_streaming else _answering)(serve)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)


def only_internal(config: TlsConfig) -> Sequence[grpc.aio.ServerInterceptor]:
    """For a server that serves our own processes; none where that is in the clear."""
    return [OnlyInternal()] if config.internal else []


def _streaming(serve: Callable[[Any, _Context], Any]) -> Callable[[Any, _Context], AsyncIterator[Any]]:
    async def handle(request: Any, context: _Context) -> AsyncIterator[Any]:
        await _require_name(context)
        async with contextlib.aclosing(serve(request, context)) as answers:
            async for answer in answers:
                yield answer

    return handle


def _answering(serve: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[[Any, _Context], Awaitable[Any]]:
    async def handle(request: Any, context: _Context) -> Any:
        await _require_name(context)
        return await serve(request, context)

    return handle


async def _require_name(context: _Context) -> None:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    if INTERNAL_NAME.encode() not in names:
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED, f"only whose certificate is for the name {INTERNAL_NAME} is served here"
        )

"""What operators change through the admin API, in an audit trail like a router's: `controller-<host>.jsonl`.

Recorded before it is done, and how it ended; so is who asks without being let in. Who only looks is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf import text_format

from shoal.proto.v1 import admin_pb2
from shoal.router.access.caller import Caller
from shoal.router.audit.assemble import build_trail
from shoal.router.audit.config import AuditConfig
from shoal.router.audit.trail import Trail
from shoal.router.errors import AuditError, StartError
from shoal.wire.registry import ON_BEHALF_KEY

LOOKING = frozenset({"GetCluster"})
"""Methods that change nothing."""

_LONGEST = 512  # characters of what was asked

_log = structlog.get_logger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class AdminTrail:
    """Belongs to one event loop. A trail that cannot be opened is tried again at the next change: serving does not
    hang on it."""

    def __init__(self, config: AuditConfig) -> None:
        """Without a directory nothing is recorded."""
        # What operators ask has no content of anybody's.
        self._config = dataclasses.replace(config, encryption_key_file="", usual="hash")
        self._trail: Trail | None = None
        self._opening = asyncio.Lock()

    async def changing(self, caller: Caller, method: str, about: str) -> None:
        """Before it is done. Raises AuditError when it must not be."""
        if (trail := await self._opened()) is not None:
            await trail.changing(caller, method, about)

    async def ended(self, caller: Caller, method: str, about: str, outcome: str) -> None:
        """Afterwards. Never raises: what could not be written is logged, and counted in the next record."""
        with contextlib.suppress(AuditError):
            if (trail := await self._opened()) is not None:
                await trail.called(caller, method, outcome, about)

    async def _opened(self) -> Trail | None:
        if self._trail is None and self._config.directory:
            async with self._opening:
                if self._trail is None:
                    await self._open()
        return self._trail

    async def _open(self) -> None:
        try:
            self._trail = await asyncio.to_thread(build_trail, self._config, f"controller-{socket.gethostname()}")
        except StartError as error:
            _log.error("audit_record_lost", problem=str(error), refused=self._config.on_failure == "refuse")
            if self._config.on_failure == "refuse":
                raise AuditError(str(error)) from error


class Recorded(grpc.aio.ServerInterceptor):
    """Around the admin API's methods."""

    def __init__(self, trail: AdminTrail) -> None:
        self._trail = trail

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio.ServerInterceptor."""
        handler: Any = await continuation(handler_call_details)
        name = handler_call_details.method.rpartition("/")[2]
        if handler is None or name in LOOKING:
            return handler  # type: ignore[no-any-return]  # as it came
        assert handler.unary_unary is not None, f"{name} streams"
        serve = self._around(f"{_SERVICE}/{name}", handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(serve, handler.request_deserializer, handler.response_serializer)

    def _around(self, method: str, serve: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        async def handle(request: Any, context: _Context) -> Any:
            who = Caller("", "admin", "internal", _name_of(context))
            about = text_format.MessageToString(request, as_one_line=True)[:_LONGEST]
            try:
                await self._trail.changing(who, method, about)
            except AuditError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"not done, it could not be recorded: {error}")
            try:
                answer = await serve(request, context)
            except BaseException:
                code: Any = context.code()  # of a call that was aborted; the stub says int
                outcome = code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
                await asyncio.shield(self._trail.ended(who, method, about, outcome))
                raise
            await self._trail.ended(who, method, about, "OK")
            return answer

        return handle


_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].name


def _name_of(context: _Context) -> str:
    """Who asks, as far as that is known: the certificate's name, or where the connection comes from; and for whom."""
    names = context.auth_context().get("x509_common_name", ())
    asking = b",".join(names).decode("utf-8", "replace") or str(context.peer())
    behind = [str(value) for key, value in context.invocation_metadata() or () if key == ON_BEHALF_KEY]
    return " for ".join([asking, *behind])[:_LONGEST]

"""What operators ask of the cluster, through a router: that knows who they are, and the controller does it.

The controller listens to our own processes only. Here the table says which roles may ask, and `access.operators` which
tenants they must be of: groups and workers are everybody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from shoal.proto.v1 import admin_pb2 as pb
from shoal.proto.v1.admin_pb2_grpc import AdminServiceServicer, AdminServiceStub
from shoal.router.access.caller import Caller, current_caller
from shoal.router.errors import ControllerAwayError
from shoal.router.store.away import ABSENT
from shoal.router.store.script import Client
from shoal.wire.credentials import open_channel
from shoal.wire.registry import CONTROLLER_KEY, ON_BEHALF_KEY
from shoal.wire.status import AbsentError, DeniedError, InternalError, InvalidError
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client

_SECONDS, _BALANCING = 10.0, 60.0
_RETRY_AFTER_MS = 1_000

_Context = grpc.aio.ServicerContext[Any, Any]


class Operations(AdminServiceServicer):
    """Passes calls on. `Inject` is for nobody here: who breaks things on purpose does it beside the controller."""

    def __init__(self, client: Client | None, tls: TlsConfig, operators: Sequence[str]) -> None:
        """`client` finds the controller; None: there is none. `operators` are tenants."""
        self._client, self._tls, self._operators = client, tls, frozenset(operators)

    async def GetCluster(self, request: pb.GetClusterRequest, context: _Context) -> pb.GetClusterResponse:  # noqa: N802  # gRPC's name
        """Every group with its workers."""
        return await self._pass_on(request)  # type: ignore[no-any-return]

    async def Scale(self, request: pb.ScaleRequest, context: _Context) -> pb.ScaleResponse:  # noqa: N802  # as above
        """Another number of workers or groups."""
        return await self._pass_on(request)  # type: ignore[no-any-return]

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainResponse:  # noqa: N802  # as above
        """A worker goes."""
        return await self._pass_on(request)  # type: ignore[no-any-return]

    async def Rebalance(self, request: pb.RebalanceRequest, context: _Context) -> pb.RebalanceResponse:  # noqa: N802  # as above
        """Experts move."""
        return await self._pass_on(request, _BALANCING)  # type: ignore[no-any-return]

    async def Inject(self, request: pb.InjectRequest, context: _Context) -> pb.InjectResponse:  # noqa: N802  # as above
        """Nobody comes here: the table has no role for it."""
        raise DeniedError("things are broken on purpose beside the controller: shoal chaos")

    async def _pass_on(self, request: Any, seconds: float = _SECONDS) -> Any:
        """The controller's answer. Raises DeniedError, ControllerAwayError, and what the controller refuses with."""
        caller = current_caller()
        if caller.tenant not in self._operators:
            raise DeniedError(f"the tenant {caller.tenant!r} does not operate this cluster: access.operators says who")
        method = type(request).__name__.removesuffix("Request")
        address, known = await self._address(), internal_client(self._tls)
        async with open_channel(address, credentials=known, name=INTERNAL_NAME) as channel:
            call: Any = getattr(AdminServiceStub(channel), method)
            try:
                return await call(request, timeout=seconds, metadata=((ON_BEHALF_KEY, _name_of(caller)),))
            except grpc.aio.AioRpcError as error:
                raise _told(error) from error

    async def _address(self) -> str:
        try:
            raw = await self._client.get(CONTROLLER_KEY) if self._client is not None else None
        except ABSENT as error:
            problem = f"Redis, which says where the controller is, does not answer ({type(error).__name__})"
            raise ControllerAwayError(problem, retry_after_ms=_RETRY_AFTER_MS) from error
        if raw is None:
            raise ControllerAwayError("no controller is announced", retry_after_ms=_RETRY_AFTER_MS)
        return raw.decode() if isinstance(raw, bytes) else str(raw)


def _name_of(caller: Caller) -> str:
    """As metadata may hold it."""
    return f"{caller.tenant} {caller.key_id}".encode("ascii", "replace").decode()


def _told(error: grpc.aio.AioRpcError) -> Exception:
    said = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidError(said)
        case grpc.StatusCode.NOT_FOUND:
            return AbsentError(said)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            return ControllerAwayError(f"the controller: {said}", retry_after_ms=_RETRY_AFTER_MS)
        case _:
            return InternalError(f"the controller: {said}")

"""A controller that notes what it is asked: the far side of operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import redis.asyncio

from shoal.proto.v1 import admin_pb2 as pb
from shoal.proto.v1.admin_pb2_grpc import AdminServiceServicer, add_AdminServiceServicer_to_server
from shoal.wire.registry import CONTROLLER_KEY, ON_BEHALF_KEY

_Context = grpc.aio.ServicerContext[Any, Any]


class ScriptedController(AdminServiceServicer):
    """It has one worker, g0-0."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """What changes were asked for, and on whose behalf."""

    def _note(self, request: Any, context: _Context) -> None:
        behind = [str(value) for key, value in context.invocation_metadata() or () if key == ON_BEHALF_KEY]
        self.asked.append((type(request).__name__, behind[0]))

    async def GetCluster(self, request: pb.GetClusterRequest, context: _Context) -> pb.GetClusterResponse:  # noqa: N802  # gRPC's name
        return pb.GetClusterResponse(groups=[pb.GroupInfo(group="g0", ep_size=1)])

    async def Scale(self, request: pb.ScaleRequest, context: _Context) -> pb.ScaleResponse:  # noqa: N802  # as above
        self._note(request, context)
        if request.ep_size > 8:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ep_size must be 1 to 8")
        return pb.ScaleResponse(ep_size=request.ep_size, groups=request.groups)

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainResponse:  # noqa: N802  # as above
        self._note(request, context)
        if request.worker_id != "g0-0":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"worker {request.worker_id!r} is no member of any group")
        return pb.DrainResponse()

    async def Rebalance(self, request: pb.RebalanceRequest, context: _Context) -> pb.RebalanceResponse:  # noqa: N802  # as above
        self._note(request, context)
        return pb.RebalanceResponse()

    async def Inject(self, request: pb.InjectRequest, context: _Context) -> pb.InjectResponse:  # noqa: N802  # as above
        self._note(request, context)
        return pb.InjectResponse()


@asynccontextmanager
async def controller(redis_url: str) -> AsyncIterator[ScriptedController]:
    """One that is announced, until the end of the block."""
    server, scripted = grpc.aio.server(), ScriptedController()
    add_AdminServiceServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await client.set(CONTROLLER_KEY, f"127.0.0.1:{port}")
    try:
        yield scripted
    finally:
        await client.delete(CONTROLLER_KEY)
        await client.aclose()
        await server.stop(0)

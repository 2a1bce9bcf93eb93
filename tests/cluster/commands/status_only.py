"""A worker that only says how it is."""

from __future__ import annotations

from typing import Any

import grpc

from shoal.proto.v1 import worker_pb2 as pb
from shoal.proto.v1 import worker_pb2_grpc


class StatusOnly(worker_pb2_grpc.WorkerServiceServicer):
    """`status` is what it says; each time it is asked, one request less runs."""

    def __init__(self, status: pb.GetStatusResponse) -> None:
        self.status = status

    def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:  # noqa: N802  # gRPC's name
        said = pb.GetStatusResponse()
        said.CopyFrom(self.status)
        self.status.running = max(0, self.status.running - 1)
        return said

    def Connect(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  # gRPC's name
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "this one only says how it is")

    def Wake(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  # gRPC's name
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "this one only says how it is")

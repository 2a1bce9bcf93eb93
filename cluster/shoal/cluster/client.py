"""What the command line says to a router and to workers: a few blocking calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2

from shoal.cluster.errors import CallError
from shoal.cluster.own_access import OwnAccess
from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from shoal.wire.credentials import open_sync_channel
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client

INFERENCE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
SESSIONS = pb.DESCRIPTOR.services_by_name["SessionService"].full_name


def health(address: str, timeout: float, service: str = "", access: OwnAccess | None = None) -> str:
    """The router's word for the health of one of its services, "UNREACHABLE" when it does not answer.

    `INFERENCE` says whether it can generate, `SESSIONS` whether it can keep conversations, "" only that it lives.
    """
    with (access or OwnAccess()).router(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer: health_pb2.HealthCheckResponse = check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout
            )
        except grpc.RpcError:
            return "UNREACHABLE"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def is_serving(address: str, timeout: float, access: OwnAccess | None = None) -> bool:
    """Whether the router at `address` can generate and keep conversations."""
    return all(health(address, timeout, service, access) == "SERVING" for service in (INFERENCE, SESSIONS))


def worker_status(address: str, timeout: float, access: OwnAccess | None = None) -> worker_pb2.GetStatusResponse | None:
    """What the worker at `address` says of itself, None when it does not answer."""
    tls = (access.tls if access is not None else None) or TlsConfig()
    with open_sync_channel(address, internal_client(tls), INTERNAL_NAME) as channel:
        try:
            return worker_pb2_grpc.WorkerServiceStub(channel).GetStatus(worker_pb2.GetStatusRequest(), timeout=timeout)
        except grpc.RpcError:
            return None


class RouterClient:
    """One router. Every call raises CallError with the status and the router's message."""

    def __init__(self, address: str, access: OwnAccess | None = None) -> None:
        """`access`: how we are known there; by default not at all, and in the clear."""
        self.address, self._access = address, access or OwnAccess()
        self._channel = self._access.router(address)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._sessions = inference_pb2_grpc.SessionServiceStub(self._channel)

    def chat(self, request: pb.ChatRequest, timeout: float) -> Iterator[pb.ChatResponse]:
        """One turn; leaving the loop early cancels it."""
        call = self._inference.Chat(request, timeout=timeout, metadata=self._access.metadata)
        try:
            with _told(self.address):
                yield from call
        finally:
            call.cancel()

    def session(self, session_id: str, timeout: float = 10.0) -> pb.GetSessionResponse:
        """A session with everything said."""
        with _told(self.address):
            return self._sessions.GetSession(
                pb.GetSessionRequest(session_id=session_id), timeout=timeout, metadata=self._access.metadata
            )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


@contextmanager
def _told(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if not isinstance(error, grpc.Call):
            raise CallError(f"the call to {address} failed: {error}") from error
        if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
            raise CallError(f"no router answers at {address}: is `shoal serve` or `shoal router` running?") from error
        raise CallError(f"{error.code().name}: {error.details()} (router {address})") from error

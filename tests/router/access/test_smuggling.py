"""What else a connection may bring: other services, several credentials, requests within requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.proto.v1 import inference_pb2, worker_pb2
from shoal.router.fleet.scripted_worker import saying
from tests.router.access.showing import Ring
from tests.router.conftest import Cluster, StartCluster


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    """Credentials of acme."""
    return Ring(tmp_path)


@pytest.fixture
async def cluster(start_cluster: StartCluster, ring: Ring) -> Cluster:
    """A router that asks for credentials."""
    return await start_cluster(saying([1]), access=ring.config(), http_port=0, model_name="model")


async def code_of(cluster: Cluster, method: str, request: bytes = b"", **more: Any) -> grpc.StatusCode:
    """How a call ends, as a stream or not."""
    call: Any = cluster.front.channel.stream_stream(method)
    try:
        async for _ in call(iter([request]), timeout=5, **more):
            return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    "method",
    [
        *(f"/{s.full_name}/{m.name}" for s in worker_pb2.DESCRIPTOR.services_by_name.values() for m in s.methods),
        "/shoal.proto.v1.InferenceService/Forgotten", "/InferenceService/Chat", "/evil.InferenceService/Chat",
        "//Health/Check", "/shoal.proto.v1.inferenceservice/chat", "/shoal.proto.v1.InferenceService/Chat/",
        "/grpc.channelz.v1.Channelz/GetServers",
    ],
)  # fmt: skip
async def test_nothing_else_is_served(cluster: Cluster, ring: Ring, method: str) -> None:
    """Workers' methods, misspelt ones and those of other services, even to an admin."""
    shown = (("authorization", f"Bearer {ring.shown['admin']}"),)
    assert await code_of(cluster, method, metadata=shown) is grpc.StatusCode.UNIMPLEMENTED


async def test_health_and_reflection_need_nothing_and_tell_nothing(cluster: Cluster) -> None:
    """Both are rows of the table that are open to everybody; what they name, they do not let in to."""
    list_services = b"\x3a\x00"  # list_services: ""
    assert await code_of(cluster, "/grpc.health.v1.Health/Check") is grpc.StatusCode.OK
    reflected = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    assert await code_of(cluster, reflected, list_services) is grpc.StatusCode.OK
    listed = "/shoal.proto.v1.InferenceService/ListModels"
    assert await code_of(cluster, listed) is grpc.StatusCode.UNAUTHENTICATED


async def test_several_credentials_are_none(cluster: Cluster, ring: Ring) -> None:
    """Whoever stands before a router may have looked at another one of them; both APIs refuse, whatever the order."""
    good, bad = f"Bearer {ring.shown['admin']}", "Bearer noise"
    request = inference_pb2.ListModelsRequest()
    for first, second in ((good, bad), (bad, good), (good, f"Bearer {ring.shown['user']}")):
        metadata = (("authorization", first), ("authorization", second))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.front.inference.ListModels(request, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        lines = f"Authorization: {first}\r\nauthorization: {second}"
        assert (await raw(cluster, f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"))[:1] == ["401"]


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked", "Content-Length: 4\r\nContent-Length: 5",
        "Transfer-Encoding: chunked, identity", "Transfer-Encoding : chunked", "Content-Length: +4",
    ],
)  # fmt: skip
async def test_no_request_hides_within_another(cluster: Cluster, ring: Ring, lines: str) -> None:
    """A body whose length can be read in two ways gets one answer at most, a refusal, and ends the connection."""
    inner = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ring.shown['admin']}\r\n\r\n"
    told = await raw(cluster, f"POST /v1/responses HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n0\r\n\r\n{inner}")
    assert len(told) == 1
    assert told[0] in ("400", "401", "501")


@pytest.mark.parametrize(
    "name", ["client_certificate", "x-client-certificate", "x-forwarded-client-cert", "x-ssl-client-cert", "x-tenant"]
)
async def test_headers_say_nothing_of_who_asks(cluster: Cluster, name: str) -> None:
    """Only the authorization, and the certificate that TLS saw, do."""
    told = await raw(cluster, f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{name}: spiffe://acme/admin\r\n\r\n")
    assert told == ["401"]


async def raw(cluster: Cluster, text: str) -> list[str]:
    """The statuses of all answers to whatever was sent."""
    host, _, port = cluster.front.listening.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text.encode())
    writer.write_eof()
    told = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    return [line.split()[1] for line in told.split("\r\n") if line.startswith("HTTP/1.1 ")]

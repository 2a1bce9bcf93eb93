"""Groups as the registry describes them: who serves, and what health says of it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.fleet.scripted_worker import ScriptedWorker, saying
from shoal.router.server import INFERENCE
from shoal.wire.registry import GROUPS_KEY, GroupEntry, WorkerEntry, encode, group_key
from tests.router.conftest import Front, StartRouter
from tests.router.http.asking import ask
from tests.router.talking import events_of, until


def announce(url: str, group: str, worker: ScriptedWorker, *, ready: bool = True, draining: bool = False) -> None:
    """As a controller does."""
    entry = GroupEntry(group, 1, ready, (WorkerEntry(f"{group}-0", 0, worker.address, draining),))
    with redis.Redis.from_url(url) as client:
        client.set(group_key(group), encode(entry))
        client.sadd(GROUPS_KEY, group)


async def health(front: Front) -> int:
    """What gRPC's health says of generation."""
    stub: Any = health_pb2_grpc.HealthStub(front.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE))).status)


async def test_a_group_goes_out_of_rotation_and_comes_back(start_router: StartRouter, redis_url: str) -> None:
    """Found in the registry, it serves while it is ready; with none ready `/readyz` and gRPC health say no, and the
    process still lives."""
    async with ScriptedWorker(saying([1])) as first, ScriptedWorker(saying([2])) as second:
        announce(redis_url, "a", first)
        announce(redis_url, "b", second)
        front = await start_router(redis_url=redis_url, registry_poll=0.05, http_port=0)
        await until(lambda: len(front.router.pool.eligible()) == 2)
        assert (await ask(front.listening.http, "/readyz")).status == 200
        announce(redis_url, "a", first, ready=False)
        await until(lambda: len(front.router.pool.eligible()) == 1)
        for _ in range(3):
            await events_of(front.inference.Generate(api.GenerateRequest(text="x")))
        assert (len(first.submits), len(second.submits)) == (0, 3)
        announce(redis_url, "b", second, draining=True)
        await until(lambda: not front.router.pool.eligible())
        assert (await ask(front.listening.http, "/readyz")).status == 503
        assert (await ask(front.listening.http, "/healthz")).status == 200
        await _becomes(front, health_pb2.HealthCheckResponse.NOT_SERVING)
        announce(redis_url, "a", first)
        await until(lambda: len(front.router.pool.eligible()) == 1)
        await _becomes(front, health_pb2.HealthCheckResponse.SERVING)

        events = await events_of(front.inference.Generate(api.GenerateRequest(text="x")))
        assert events[-1].WhichOneof("event") == "done"
        assert len(first.submits) == 1


async def _becomes(front: Front, wanted: int) -> None:
    for _ in range(200):
        if await health(front) == wanted:
            return
        await asyncio.sleep(0.02)
    raise grpc.RpcError(f"health did not become {wanted}")

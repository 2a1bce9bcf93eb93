"""Wrong is worse than down, through a whole cluster: a group that computes wrongly is taken from the clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.cluster.checkpoint.golden import make_golden
from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.group_state import Stage
from shoal.router.server import INFERENCE
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.model import golden
from tests.chaos.town import Town, town

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # nobody else is told
            await asyncio.sleep(0.02)


async def health(t: Town, service: str) -> int:
    """What gRPC's health says of a part of the router."""
    stub: Any = health_pb2_grpc.HealthStub(t.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status)


async def becomes(t: Town, wanted: int) -> None:
    """Until health says so of generation."""
    async with asyncio.timeout(10):
        while await health(t, INFERENCE) != wanted:  # noqa: ASYNC110  # it is asked, it does not tell
            await asyncio.sleep(0.05)


async def test_a_golden_mismatch_takes_the_group_from_the_clients(tmp_path: Path, redis_url: str) -> None:
    """An expert's bytes change on the disk after the start; a spare joins and reads them. The self-test of the new
    epoch finds it, the group leaves the rotation and does not serve with these bytes; the router says so and lives."""
    model = make_checkpoint(tmp_path / "model", "tiny", seed=3)
    with open_checkpoint(model) as checkpoint:
        make_golden(checkpoint).save(model / golden.NAME, checkpoint.fingerprint)
        part = checkpoint.slices["model.layers.1.mlp.experts.down_proj_blocks"]
        where, file = part.offset + part.nbytes - 4096, part.file.path  # of the last expert, which moves
    async with town(model, redis_url, ep_size=1, spares=1, peer_copies="never") as t:
        await until(lambda: len(t.state.at(Stage.SPARE)) == 1)
        await becomes(t, SERVING)
        with file.open("r+b") as raw:
            raw.seek(where)
            sound = raw.read(4096)
            raw.seek(where)
            raw.write(bytes(byte ^ 0x77 for byte in sound))
        await t.scale(2)
        await until(lambda: t.state.unfit == 1 and not t.router.pool.eligible())
        await becomes(t, NOT_SERVING)
        assert SERVING == await health(t, ""), "the process lives"
        assert not t.router._parts()["generate"], "what /readyz says"

"""Wrong is worse than down, through a whole cluster: a group that computes wrongly is taken from the clients, one that
cannot read its checkpoint says which file, and both come back once the bytes are right."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.cluster.checkpoint.golden import make_golden
from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.group_state import Phase, Stage
from shoal.router.server import INFERENCE
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.model import golden
from tests.chaos.town import Town, town

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds, however busy the machine."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # nobody else is told
            await asyncio.sleep(0.02)


async def becomes(t: Town, wanted: int) -> None:
    """Until gRPC's health says so of generation; of the process it says all the time that it lives."""
    stub: Any = health_pb2_grpc.HealthStub(t.channel)

    async def health(service: str) -> int:
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)).status)

    async with asyncio.timeout(60):
        while await health(INFERENCE) != wanted:  # noqa: ASYNC110  # it is asked, it does not tell
            await asyncio.sleep(0.05)
    assert SERVING == await health("")


def last_expert(model: Path) -> tuple[Path, int]:
    """File and offset of bytes in the middle of an expert that a second rank will hold: its ends are looked at already
    when the checkpoint is opened."""
    with open_checkpoint(model) as checkpoint:
        part = checkpoint.slices["model.layers.1.mlp.experts.down_proj_blocks"]
        return part.file.path, part.offset + part.nbytes - part.nbytes // checkpoint.config.num_experts // 2


@contextlib.contextmanager
def damaged(file: Path, where: int) -> Iterator[None]:
    """Other bytes there, for a while."""
    with file.open("r+b") as raw:
        raw.seek(where)
        sound = raw.read(4096)
        raw.seek(where)
        raw.write(bytes(byte ^ 0x77 for byte in sound))
        raw.flush()
        yield
        raw.seek(where)
        raw.write(sound)


@contextlib.contextmanager
def cut_short(file: Path, where: int) -> Iterator[None]:
    """The file ends there, for a while."""
    with file.open("r+b") as raw:
        raw.seek(where)
        rest = raw.read()
        raw.truncate(where)
        yield
        raw.seek(where)
        raw.write(rest)


async def test_wrong_logits_take_the_group_from_the_clients_until_it_is_right(tmp_path: Path, redis_url: str) -> None:
    """An expert's bytes change on the disk after the start; a spare joins and reads them. The self-test of the new
    epoch finds it, and of every new start: the group is given up, says why, and no request reaches it. The router lives
    and says that it cannot generate. With the right bytes it comes back when it is asked for, and answers as before."""
    model = make_checkpoint(tmp_path / "model", "tiny", seed=3)
    with open_checkpoint(model) as checkpoint:
        make_golden(checkpoint).save(model / golden.NAME, checkpoint.fingerprint)
    async with town(model, redis_url, ep_size=1, spares=1, peer_copies="never") as t:
        await until(lambda: len(t.state.at(Stage.SPARE)) == 1)
        await becomes(t, SERVING)
        before = await t.hear(1, 24)
        with damaged(*last_expert(model)):
            await t.scale(2)
            await until(lambda: t.state.phase is Phase.FAILED)
            assert "golden logits are missed" in t.state.reason
            assert f"shoal checkpoint verify {model}" in t.state.reason
            assert t.policy.patience - 1 == t.state.unfit, "it was not tried anew before"
            await until(lambda: not t.router.pool.eligible())
            await becomes(t, NOT_SERVING)
            assert "UNAVAILABLE" in (await t.hear(1, 24)).error
        await t.scale(2)
        await t.settled(2, within=60)
        await becomes(t, SERVING)
        after = await t.hear(1, 24)
        assert (before.said, "") == (after.said, after.error)


async def test_a_checkpoint_that_is_cut_short_is_named_and_waited_for(tmp_path: Path, redis_url: str) -> None:
    """A rank dies, and the other one cannot read what it held: nobody else is killed, the group waits and names the
    file, and a request waits with it. Once the file is whole they go on by themselves."""
    model = make_checkpoint(tmp_path / "model", "tiny", seed=3)
    file, where = last_expert(model)
    async with town(model, redis_url, ep_size=2) as t:
        calm = await t.hear(1, 96)
        survivor, victim = t.ranks
        with cut_short(file, where):
            heard = asyncio.create_task(t.hear(1, 96))
            await until(lambda: any(link.load.own for link in t.router.pool.eligible()))
            t.fleet.signal(victim, signal.SIGKILL)
            await until(lambda: t.state.phase is Phase.WAITING and t.state.failures >= 2)
            assert file.name in t.state.reason
            assert survivor in t.ranks
        await t.settled(2, within=60)
        assert (calm.said, "") == ((await heard).said, (await heard).error)
        assert survivor in t.ranks

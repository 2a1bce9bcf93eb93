"""Pools of workers and something for them to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.fleet.backend import Accepted, Tokens, Work
from shoal.router.fleet.pool import Member, WorkerPool
from shoal.router.fleet.scripted_worker import ScriptedWorker
from shoal.router.harmony.message import Run
from tests.router.talking import until


def work(request_id: str = "q", **fields: Any) -> Work:
    """Something to do."""
    limits = pb.WorkerLimits(max_tokens=100)
    return Work(request_id, (Run((1, 2), False),), 3, pb.WorkerSampling(), limits, 0.0, **fields)


async def outputs_of(pool: WorkerPool, made: Work) -> list[Accepted | Tokens]:
    """Everything until the end."""
    async with aclosing(pool.submit(made)) as outputs:
        return [output async for output in outputs]


async def connected(pool: WorkerPool, *workers: ScriptedWorker, also: Sequence[str] = ()) -> None:
    """Make them members, `also` those at the addresses, and wait."""
    addresses = [*(worker.address for worker in workers), *also]
    pool.set_members([Member(address) for address in addresses])
    await until(lambda: len(pool.eligible()) == len(addresses))

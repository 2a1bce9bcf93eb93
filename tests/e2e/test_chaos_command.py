"""`shoal chaos` breaks every part that it names, in a cluster that allows it, and no stream is lost."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest

from shoal.cluster.commands.status import read_registry
from tests.chaos.listener import Listener
from tests.chaos.serve import whole_again
from tests.e2e.served import OWN_DISK, Served

STREAMS, TOKENS = 8, 96


def names(served: Served) -> list[str]:
    """The workers that serve."""
    run = served.running()
    assert run is not None, served.output()
    problem, groups = read_registry(run.redis_url)
    assert not problem, problem
    return [worker.worker_id for group in groups for worker in group.workers]


class Load:
    """Streams that begin anew until they are told to end; each must say what it says undisturbed."""

    def __init__(self, served: Served) -> None:
        run = served.running()
        assert run is not None, served.output()
        self._addresses, self._over = [run.router], asyncio.Event()
        self._calm: list[Listener] = []
        self.wrong: list[str] = []
        self.count = 0

    async def begin(self) -> None:
        """Returns once the load is there."""
        self._calm = [Listener(number, TOKENS) for number in range(STREAMS)]
        await asyncio.gather(*(one.listen(self._addresses, random.Random(one.number)) for one in self._calm))
        assert [] == [one.failed for one in self._calm if one.failed], "nothing was broken yet"
        self._clients = [asyncio.create_task(self._keep_asking(calm)) for calm in self._calm]

    async def end(self) -> None:
        """Returns once the last streams have ended."""
        self._over.set()
        await asyncio.gather(*self._clients)

    async def _keep_asking(self, calm: Listener) -> None:
        while not self._over.is_set():
            one = Listener(calm.number, TOKENS)
            await one.listen(self._addresses, random.Random(one.number))
            self.count += 1
            if one.failed or one.said() != calm.said():
                self.wrong.append(f"stream {one.number}, resumed {one.resumed}: {one.failed or difference(one, calm)}")


def difference(one: Listener, calm: Listener) -> str:
    """The first event that is another one than undisturbed."""
    pairs = itertools.zip_longest(one.said(), calm.said())
    return next(f"event {i}: {a} instead of {b}" for i, (a, b) in enumerate(pairs) if a != b)


async def broken(served: Served, faults: Sequence[Sequence[str]]) -> None:
    """One fault after another, by the command, under load; the cluster is whole again after each."""
    load = Load(served)
    await load.begin()
    for fault, *options in faults:
        worker = [names(served)[-1]] if fault not in ("redis", "disk") else []
        done = await asyncio.to_thread(served.shoal, "chaos", fault, *worker, *options)
        assert (0, f"{fault}: done\n") == (done.returncode, done.stdout), done.stderr
        await whole_again(served)
    await load.end()
    print(f"{load.count} streams")
    assert not load.wrong, "\n".join(load.wrong)


async def test_what_happens_to_workers_and_redis_costs_no_stream(cluster: Served) -> None:
    """kill, stop, delay, drop, corrupt, redis: every stream ends, and says what it says undisturbed."""
    faults = (
        ("delay", "--seconds", "2", "--amount", "0.05"), ("corrupt",), ("drop", "--seconds", "3"), ("kill",),
        ("stop", "--seconds", "30"), ("redis", "--seconds", "3"),
    )  # fmt: skip
    await broken(cluster, faults)


@pytest.mark.skipif(not OWN_DISK, reason="needs root: the disk that is filled is one of its own")
async def test_a_full_disk_costs_no_stream(cluster: Served) -> None:
    """Redis, Ray's control service and the logs cannot write for a while; then they can."""
    await broken(cluster, (("disk", "--seconds", "3"),))

"""A thousand reconfigurations in a row, and what they leave behind.

python -m tests.chaos.leaks --epochs 1000      the long form, as `make chaos` runs it; adds rows to the record `chaos`

The experts of two ranks change places in every epoch; in every hundredth a worker is sent away and another comes.
Counted are, of each worker and of the process with the controller and the router: open files (sockets among them),
threads, memory; and all processes, temporary files and keys in Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing.util
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.workers.experts.placement import Placement
from tests.bench.record import Row, add, load_average
from tests.chaos.town import Town, town

BOUNDS = {
    "open files": 6,
    "sockets": 6,
    "threads": 6,
    "memory, MiB": 64,
    "processes": 0,
    "temporary files": 0,
    "keys in Redis that do not expire": 0,
    "workers forgotten": 0,
}
"""How many more there may be, however many epochs there were."""


@dataclass(frozen=True)
class Census:
    """What there is at one moment, the most of any process of one kind."""

    counts: Mapping[str, float]

    def grown(self, before: Census) -> dict[str, float]:
        """How much more than before."""
        return {name: round(count - before.counts[name], 1) for name, count in self.counts.items()}


async def census(t: Town, redis_url: str) -> Census:
    """Now, once what ends by itself has ended."""
    await asyncio.sleep(6.0)  # gloo's threads end within five seconds
    gc.collect()
    mine = psutil.Process()
    processes = [mine, *(psutil.Process(worker.facts.pid) for worker in t.fleet.workers.values())]
    with redis.Redis.from_url(redis_url) as client:
        lasting = sum(client.ttl(key) == -1 for key in client.scan_iter())
    return Census(
        {
            "open files": max(p.num_fds() for p in processes),
            "sockets": max(len(p.net_connections("all")) for p in processes),
            "threads": max(p.num_threads() for p in processes),
            "memory, MiB": max(p.memory_info().rss for p in processes) / 2**20,
            "processes": len(mine.children(recursive=True)),
            "temporary files": sum(len(names) for _, _, names in os.walk(tempfile.gettempdir())),
            "keys in Redis that do not expire": lasting,
            "workers forgotten": len(t.forgotten),
        }
    )


async def reconfigure(t: Town, count: int, replace_every: int) -> None:
    """So many epochs: experts change places, or a worker is replaced."""
    for number in range(1, count + 1):
        state = t.state
        assert state.spec is not None, "no epoch"
        if number % replace_every == 0:
            leaving = t.ranks[0]
            t.controller.drain(leaving)
            await t.settled(without=leaving, within=60)
        else:
            t.controller.rebalance("g0", state.epoch, exchanged(state.spec.placement))
            await t.changed(state.epoch)


def exchanged(placement: Placement) -> Placement:
    """Each rank gets the experts of the one before it."""
    size = placement.ep_size
    holders = tuple(
        tuple(tuple(sorted((rank + 1) % size for rank in ranks)) for ranks in experts) for experts in placement.holders
    )
    return Placement(size, holders)


def rows(epochs: int, seconds: float, grown: Mapping[str, float]) -> list[Row]:
    """For the record."""
    found = [Row(f"{epochs} epochs: seconds each", round(seconds / epochs, 4), "s")]
    for name, more in grown.items():
        found.append(Row(f"{epochs} epochs: {name} more", more, "", goal=BOUNDS[name], met=more <= BOUNDS[name]))
    return found


async def long_form(model: Path, redis_url: str, epochs: int, warm_up: int) -> list[Row]:
    """Warm up, count, change, count."""
    async with town(model, redis_url, ep_size=2) as t:
        await reconfigure(t, warm_up, warm_up)  # with a replacement at its end
        before = await census(t, redis_url)
        begin = time.monotonic()
        await reconfigure(t, epochs, 100)
        seconds = time.monotonic() - begin
        return rows(epochs, seconds, (await census(t, redis_url)).grown(before))


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Many reconfigurations, and what they leave behind.")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as server:
        multiprocessing.util.get_temp_dir()  # outlives the folder
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)  # for all processes that come
        model = make_checkpoint(Path(folder) / "tiny", "tiny", seed=1)
        found = asyncio.run(long_form(model, server.url, options.epochs, options.warm_up))
    add("chaos", found, f"{options.epochs} epochs: {load_average()}")
    assert all(row.met is not False for row in found), [row for row in found if row.met is False]


if __name__ == "__main__":
    main()

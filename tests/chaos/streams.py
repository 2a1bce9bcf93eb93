"""Thirty-two streams while a worker, a router or Redis is killed: none fails, and each says what it says undisturbed.

python -m tests.chaos.streams --rounds 50      the long form, as `make chaos` runs it; adds rows to the record `chaos`

Two workers that compute, each a group of its own; two router processes; a Redis process with its file. In each round
all streams begin, then one of the five is killed with SIGKILL at a random moment, and comes back (a worker at another
address, as the registry says). A client whose stream breaks resumes it at a random router.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import redis

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.group_state import Policy
from shoal.wire.registry import GROUPS_KEY, GroupEntry, WorkerEntry, encode, group_key
from tests.bench.record import Row, add, load_average
from tests.chaos.killable import Killable, KillableRedis, KillableRouter
from tests.chaos.listener import Listener
from tests.workers.processes import Crew, crew

STREAMS = 32


class KillableWorker:
    """A worker that is a group of its own, and its entry in the registry."""

    def __init__(self, name: str, hired: Crew, url: str) -> None:
        self.name, self._crew, self._url = name, hired, url
        self.lives = 0
        self.came_back: list[float] = []
        """Seconds that each new life took."""

    def kill(self) -> None:
        """See `Killable`."""
        self._crew.workers.pop(self.worker_id).kill()

    def start(self) -> None:
        """See `Killable`."""
        began = time.monotonic()
        self.lives += 1
        self._crew.hire(self.worker_id)
        self._crew.form(self.worker_id)
        self.register()
        self.came_back.append(time.monotonic() - began)

    def register(self) -> None:
        """As a controller does, again and again."""
        worker = WorkerEntry(self.worker_id, 0, self._crew.address(self.worker_id))
        entry = GroupEntry(self.name, self.lives, True, (worker,))
        with redis.Redis.from_url(self._url) as client:
            client.set(group_key(self.name), encode(entry))
            client.sadd(GROUPS_KEY, self.name)

    @property
    def worker_id(self) -> str:
        """Its name in this life."""
        return f"{self.name}-{self.lives}"


@dataclass
class Figures:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    pauses: dict[str, list[float]] = field(default_factory=dict)
    """By what was killed: the longest silence after that, seconds, of every stream that ran (there)."""
    streams: int = 0
    resumed: int = 0
    failed: list[str] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    """The longest silence of each stream undisturbed, seconds: what the machine's load alone makes."""
    restarts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        undisturbed = "undisturbed: median {:.3f} s, p99 {:.3f} s, max {:.3f} s".format(*spread(self.calm))
        lines = [
            f"{self.streams} streams in {self.seconds:.0f} s, killed {dict(self.kills)}; resumed {self.resumed}, "
            f"failed {len(self.failed)}, not as undisturbed {len(self.different)}",
            f"  longest silences {undisturbed}",
        ]
        for kind, pauses in self.pauses.items():
            median, p99, most = spread(pauses)
            lines.append(f"  {kind}: {len(pauses)} pauses, median {median:.3f} s, p99 {p99:.3f} s, max {most:.3f} s")
        return "\n".join(lines)

    def rows(self, what: str = "", peer: str = "restart of the worker") -> list[Row]:
        """For the record; `what` begins their names, `restarts` are restarts of `peer`."""
        rows = [
            Row(f"{what}streams: failed requests", len(self.failed), "requests", goal=0, met=not self.failed),
            Row(f"{what}streams: not token by token as undisturbed", len(self.different), "requests", goal=0,
                met=not self.different),
            Row(f"{what}streams", self.streams, "streams"),
            Row(f"{what}kills", self.kills.total(), "kills"),
            Row(f"{what}longest silence undisturbed, p99", round(spread(self.calm)[1], 4), "s"),
        ]  # fmt: skip
        restart = statistics.median(self.restarts) if self.restarts else None
        for kind, pauses in self.pauses.items():
            for name, pause in zip(("median", "p99", "max"), spread(pauses), strict=True):
                row = Row(f"{what}pause after kill -9 of a {kind}, {name}", round(pause, 4), "s")
                if kind == "worker" and name == "p99":
                    row = replace(row, goal=0.5, met=pause <= 0.5)
                if kind == "worker" and restart is not None:
                    row = replace(row, peer=peer, peer_value=round(restart, 2), ratio=round(pause / restart, 3))
                rows.append(row)
        return rows


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile, largest."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], ordered[-1]


async def run(model: Path, folder: Path, rounds: int, tokens: int, seed: int, streams: int = STREAMS) -> Figures:
    """Play `rounds` rounds; each kind of process is killed in turn."""
    chance, figures, began = random.Random(seed), Figures(), time.monotonic()
    store = KillableRedis(folder / "redis")
    await asyncio.to_thread(store.start)
    settings = {"model_dir": str(model), "redis_url": store.url, "registry_poll": 0.1, "lease_seconds": 2.0}
    routers = [KillableRouter(f"router{i}", folder, **settings) for i in range(2)]
    try:
        with crew(model, kv_tokens=32768, max_batch_size=64) as hired:
            workers = [KillableWorker(f"g{i}", hired, store.url) for i in range(2)]
            await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in workers))
            await asyncio.gather(*(asyncio.to_thread(router.start) for router in routers))
            addresses = [router.address for router in routers]
            calm = await undisturbed(streams, tokens, addresses, chance, figures)
            for round_ in range(rounds):
                kind, victim = _victim(round_, chance, workers, routers, store)
                running = [Listener(number, tokens) for number in range(streams)]
                tasks = [asyncio.create_task(one.listen(addresses, chance)) for one in running]
                await partly_heard(running, tasks, chance.uniform(0.1, 0.6) * sum(len(one.events) for one in calm))
                moment, here = time.monotonic(), getattr(victim, "worker_id", "")
                await asyncio.to_thread(victim.kill)
                figures.kills[kind] += 1
                if kind == "worker":  # as a controller waits while another group serves
                    await asyncio.sleep(Policy().breath)
                await asyncio.to_thread(victim.start)
                if kind == "redis":
                    for worker in workers:
                        await asyncio.to_thread(worker.register)
                await asyncio.gather(*tasks)
                count(figures, kind, moment, calm, running, here)
            figures.restarts = [seconds for worker in workers for seconds in worker.came_back[1:]]
    finally:
        for router in routers:
            router.kill()
        await asyncio.to_thread(store.stop)
    figures.seconds = time.monotonic() - began
    return figures


def _victim(
    round_: int, chance: random.Random, workers: list[KillableWorker], routers: list[KillableRouter], store: Killable
) -> tuple[str, Killable]:
    match round_ % 3:
        case 0:
            return "worker", chance.choice(workers)
        case 1:
            return "router", chance.choice(routers)
        case _:
            return "redis", store


async def undisturbed(
    count: int, tokens: int, addresses: Sequence[str], chance: random.Random, figures: Figures
) -> list[Listener]:
    """What each stream says when nothing is killed, and the longest silences of that."""
    calm = [Listener(number, tokens) for number in range(count)]
    await asyncio.gather(*(one.listen(addresses, chance) for one in calm))
    assert [] == [(one.number, one.failed) for one in calm if one.failed], "nothing was killed yet"
    figures.calm = [pause for one in calm if (pause := one.pause_after(one.times[0])) is not None]
    return calm


async def partly_heard(running: Sequence[Listener], tasks: Sequence[asyncio.Task[None]], events: float) -> None:
    """Every stream was accepted (before that a client has nothing to lose), and so many events came."""
    pairs = list(zip(running, tasks, strict=True))
    while True:
        heard = sum(len(one.events) for one in running)
        if heard >= events and all(one.events or task.done() for one, task in pairs):
            return
        await asyncio.sleep(0.005)


def count(
    figures: Figures, kind: str, moment: float, calm: list[Listener], stormy: list[Listener], worker: str
) -> None:
    """`worker`, if any, is the one that was killed: only its streams have a pause to tell of."""
    figures.streams += len(stormy)
    figures.resumed += sum(one.resumed for one in stormy)
    figures.failed += [f"{kind}, stream {one.number}: {one.failed}" for one in stormy if one.failed]
    pairs = zip(calm, stormy, strict=True)
    figures.different += [b.number for a, b in pairs if not b.failed and a.said() != b.said()]
    pauses = figures.pauses.setdefault(kind, [])
    there = [one for one in stormy if worker in ("", one.worker)]
    pauses += [pause for one in there if (pause := one.pause_after(moment)) is not None]


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill workers, routers and Redis during 32 streams.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint(folder / "tiny", "tiny", seed=1)
        figures = asyncio.run(run(model, folder, options.rounds, options.tokens, options.seed))
    print(figures)
    note = f"two groups of one: {options.rounds} rounds in {figures.seconds:.0f} s; {load_average()}"
    add("chaos", figures.rows("two groups of one: "), note)
    assert not figures.failed, figures.failed
    assert not figures.different, figures.different


if __name__ == "__main__":
    main()

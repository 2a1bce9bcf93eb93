"""What is done to workers, controller and Redis under load, and the figures of it.

python -m tests.chaos.workers --kills 50 --epochs 1000      the long form; adds to the record `chaos`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.cluster.group_state import Phase
from shoal.workers.experts.placement import Placement
from tests.bench.record import Row, add
from tests.chaos.town import Heard, Town, town
from tests.chaos.zipf import rebalanced, zipf_model


@dataclass
class Storm:
    """What was heard while things broke, and when they did."""

    calm: list[Heard]
    heard: list[Heard] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Errors that clients saw."""
        return [heard.error for heard in (*self.calm, *self.heard) if heard.error]

    @property
    def different(self) -> list[int]:
        """Streams that said anything else than when nothing happens."""
        count = len(self.calm)
        return [i for i, heard in enumerate(self.heard) if heard.said != self.calm[i % count].said]

    @property
    def pauses(self) -> list[float]:
        """Seconds around each kill without a token, of every stream that ran then, the shortest first."""
        return sorted(p for kill in self.kills for heard in self.heard if (p := heard.pause_after(kill)) is not None)

    def check(self) -> None:
        """Nothing failed, nothing changed, and something ran while things broke."""
        assert [] == self.failed
        assert [] == self.different, [(self.heard[i].said[-20:], self.calm[i % len(self.calm)].said[-20:])
                                      for i in self.different[:1]]  # fmt: skip


async def under_load(t: Town, streams: int, tokens: int, deeds: Callable[[Storm], Awaitable[None]]) -> Storm:
    """`streams` requests at once, again and again until the deeds are done; calm ones first."""
    storm = Storm(await t.hear_all(range(streams), tokens))
    done = asyncio.Event()

    async def keep_asking(number: int) -> list[Heard]:
        heard = [await t.hear(number, tokens)]
        while not done.is_set():
            heard.append(await t.hear(number, tokens))
        return heard

    clients = [asyncio.create_task(keep_asking(number)) for number in range(streams)]
    try:
        await deeds(storm)
    finally:
        done.set()
        for rounds in zip_longest([await client for client in clients]):
            storm.heard += rounds
    return storm


def zip_longest(by_client: list[list[Heard]]) -> list[list[Heard]]:
    """Round by round, so that place i is always client i's; a client that was slower says nothing new."""
    most = max(map(len, by_client))
    return [[heard[min(i, len(heard) - 1)] for heard in by_client] for i in range(most)]


async def kill_some(t: Town, storm: Storm, rounds: int, chance: random.Random, redis_pid: Callable[[], int]) -> None:
    """kill -9 of a random member; of the controller too in every third round, of Redis in every fifth."""
    for round_ in range(rounds):
        await asyncio.sleep(0.2 + chance.random() * 0.4)
        victim = chance.choice(t.ranks)
        storm.kills.append(time.monotonic())
        t.fleet.signal(victim, signal.SIGKILL)
        if round_ % 3 == 1:
            await asyncio.sleep(chance.random() * 0.05)
            await t.kill_controller()
        if round_ % 5 == 4 and (pid := redis_pid()):
            os.kill(pid, signal.SIGKILL)
        await t.settled(without=victim, within=60)


async def scale_through(t: Town, sizes: tuple[int, ...]) -> list[float]:
    """One size after another; the seconds that each took. Each is one epoch."""
    seconds = []
    for size in sizes:
        epoch, begin = t.state.epoch, time.monotonic()
        await t.scale(size)
        await t.settled(size, within=60)
        seconds.append(time.monotonic() - begin)
        assert t.state.epoch == epoch + 1, f"{t.state.epoch - epoch} epochs for {size} workers"
    return seconds


async def stop_one(t: Town, seconds: float) -> float:
    """SIGSTOP of a member, SIGCONT after `seconds` (its fate is sealed by then); seconds until it was noticed."""
    stopped, begin = t.ranks[0], time.monotonic()
    pid = t.fleet.workers[stopped].facts.pid
    os.kill(pid, signal.SIGSTOP)
    while stopped in t.ranks or t.state.phase is not Phase.READY:  # noqa: ASYNC110  # as in Town.settled
        await asyncio.sleep(0.005)
    noticed = time.monotonic() - begin
    await t.settled(within=60)
    await asyncio.sleep(max(0.0, seconds - noticed))
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGCONT)
    return noticed


async def many_epochs(t: Town, count: int) -> list[tuple[int, int, int]]:
    """Epochs of the same members; then (open files, threads, bytes) of each worker."""
    for _ in range(count):
        assert t.state.spec is not None, "no epoch"
        await change(t, t.state.spec.placement)
    processes = [psutil.Process(worker.facts.pid) for worker in t.fleet.workers.values()]
    return [(p.num_fds(), p.num_threads(), p.memory_info().rss) for p in processes]


async def change(t: Town, placement: Placement) -> None:
    """To another placement of the same members."""
    epoch = t.state.epoch
    t.controller.rebalance("g0", epoch, placement)
    await t.changed(epoch)


def quantile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def pause_rows(what: str, storm: Storm, restart: float) -> list[Row]:
    """Median, p99 and maximum, the median also as a share of a restart of the whole group."""
    pauses, p99 = storm.pauses, quantile(storm.pauses, 0.99)
    middle = statistics.median(pauses)
    return [
        Row(f"pause after a death, {what}: median", round(middle, 3), "s", "restart of the whole group",
            round(restart, 3), round(middle / restart, 3)),
        Row(f"pause after a death, {what}: p99", round(p99, 3), "s", goal=0.5, met=p99 <= 0.5),
        Row(f"pause after a death, {what}: maximum", round(pauses[-1], 3), "s"),
        Row(f"requests failed, {what}", len(storm.failed), "of", peer_value=None, goal=0, met=not storm.failed),
        Row(f"streams that differ, {what}", len(storm.different), "of", goal=0, met=not storm.different),
        Row(f"streams, {what}", len(storm.heard), "streams"),
        Row(f"kills, {what}", len(storm.kills), "kills"),
    ]  # fmt: skip


async def long_form(model: Path, redis: EmbeddedRedis, kills: int, epochs: int, seed: int) -> list[Row]:
    """Everything, with its figures."""
    chance, rows, zipf = random.Random(seed), [], zipf_model(model.parent / "zipf")

    def redis_pid() -> int:
        return redis.pid or 0

    async with town(model, redis.url, ep_size=2) as t:

        async def restart(storm: Storm) -> None:
            await asyncio.sleep(0.5)
            storm.kills.append(time.monotonic())
            for name in t.ranks:
                t.fleet.signal(name, signal.SIGKILL)
            await asyncio.sleep(0.5)
            await t.settled(within=90)

        whole = await under_load(t, 8, 64, restart)
        restarted = statistics.median(whole.pauses)
    for what, spares in (("with a spare", 1), ("without", 0)):
        async with town(model, redis.url, ep_size=3, spares=spares) as t:
            storm = await under_load(t, 32, 96, lambda s, t=t: kill_some(t, s, kills, chance, redis_pid))  # type: ignore[misc]  # the default binds t
            rows += pause_rows(what, storm, restarted)
    async with town(model, redis.url, ep_size=2) as t:
        noticed: list[float] = []

        async def stop(storm: Storm) -> None:
            noticed.append(await stop_one(t, 30.0))

        storm = await under_load(t, 32, 96, stop)
        bad = len(storm.failed) + len(storm.different)
        rows += [
            Row(
                "SIGSTOP for 30 s: noticed and served around", round(noticed[0], 2), "s", goal=4.0, met=noticed[0] <= 4
            ),
            Row("SIGSTOP for 30 s: requests failed or different", bad, "of", goal=0, met=not bad),
        ]
    async with town(model, redis.url, ep_size=1, drain_timeout=10.0) as t:
        sizes, took = (2, 4, 3, 2, 1), []

        async def scale(storm: Storm) -> None:
            took.extend(await scale_through(t, sizes))

        storm = await under_load(t, 32, 96, scale)
        bad = len(storm.failed) + len(storm.different)
        rows += [
            Row(f"scaled to {size} under load, one epoch", round(s, 2), "s")
            for size, s in zip(sizes, took, strict=True)
        ]
        rows.append(Row("scaling: requests failed or different", bad, "of", goal=0, met=not bad))
    for copies in (0, 2):
        async with town(zipf, redis.url, ep_size=4) as t:
            skew, what = await rebalanced(t, copies), f"Zipf over experts, 4 ranks, {copies} slots for copies"
            rows += [
                Row(f"{what}: hottest expert over mean", round(skew.hottest, 3), ""),
                Row(f"{what}: fullest rank over mean, before", round(skew.before, 3), ""),
                Row(
                    f"{what}: fullest rank over mean, rebalanced",
                    round(skew.after, 3),
                    "",
                    met=skew.after < skew.before,
                ),
                Row(f"{what}: experts moved", skew.moves, "experts"),
            ]
    async with town(model, redis.url, ep_size=2) as t:
        before = await many_epochs(t, 20)
        begin = time.monotonic()
        after = await many_epochs(t, epochs)
        each = (time.monotonic() - begin) / epochs
        grown = [(b[0] - a[0], b[1] - a[1], (b[2] - a[2]) / 2**20) for a, b in zip(before, after, strict=True)]
        files, threads, memory = (max(column) for column in zip(*grown, strict=True))
        rows += [
            Row(f"{epochs} epochs: seconds each", round(each, 4), "s"),
            Row(f"{epochs} epochs: open files more", files, "files", goal=6, met=files <= 6),
            Row(f"{epochs} epochs: threads more", threads, "threads", goal=4, met=threads <= 4),
            Row(f"{epochs} epochs: memory more", round(memory, 1), "MiB", goal=64, met=memory <= 64),
            Row(f"{epochs} epochs: workers forgotten", len(t.forgotten), "workers", goal=0, met=not t.forgotten),
        ]
    return rows


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill, stop and scale workers under load.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as redis:
        model = make_checkpoint(Path(folder) / "tiny", "tiny", seed=1)
        rows = asyncio.run(long_form(model, redis, options.kills, options.epochs, options.seed))
    add("chaos", rows)


if __name__ == "__main__":
    main()

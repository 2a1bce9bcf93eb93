"""What is done to workers, controller and Redis under load, and the figures of it.

python -m tests.chaos.workers --kills 25      the long form; adds to the record `chaos`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.cluster.group_state import Phase
from shoal.proto.v1 import worker_pb2
from shoal.proto.v1.worker_pb2_grpc import WorkerServiceStub
from tests.bench.record import Row, add, load_average
from tests.chaos.cut import WHY_NOT, cut_off
from tests.chaos.town import Heard, Town, town
from tests.chaos.zipf import rebalanced, zipf_model

STREAMS, TOKENS = 32, 96
_OTHERS = 3  # tries to find a client that speaks


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
    def distinct(self) -> list[Heard]:
        """Each stream once: of a client that was slower than others, `heard` repeats the last one."""
        return list({id(heard): heard for heard in self.heard}.values())

    @property
    def silences(self) -> list[float]:
        """The longest silence of each client's stream while nothing broke."""
        return [max((b - a for a, b in itertools.pairwise(heard.times)), default=0.0) for heard in self.calm]

    @property
    def reticent(self) -> set[int]:
        """Clients whose stream is silent by itself, three times as long as usual: dozens of its tokens are a header
        that nobody is shown. A silence of theirs tells nothing of a death."""
        usual = statistics.median(self.silences)
        return {client for client, silence in enumerate(self.silences) if silence > 3 * usual}

    @property
    def pauses(self) -> list[float]:
        """The longest silence from each kill to the next one, of every stream that ran then, the shortest first."""
        return self._pauses(set())

    @property
    def pauses_of_talkers(self) -> list[float]:
        """The same without reticent clients."""
        return self._pauses(self.reticent)

    def _pauses(self, without: set[int]) -> list[float]:
        spans, count = list(itertools.pairwise([*self.kills, math.inf])), len(self.calm)
        told = {id(heard): heard for i, heard in enumerate(self.heard) if i % count not in without}.values()
        return sorted(p for a, b in spans for heard in told if (p := heard.pause_between(a, b)) is not None)

    def check(self) -> None:
        """Nothing failed, nothing changed, and something ran while things broke."""
        assert [] == self.failed
        assert [] == self.different, [(self.heard[i].said[-20:], self.calm[i % len(self.calm)].said[-20:])
                                      for i in self.different[:1]]  # fmt: skip


async def under_load(t: Town, streams: int, tokens: int, deeds: Callable[[Storm], Awaitable[None]]) -> Storm:
    """`streams` requests at once, again and again until the deeds are done; calm ones first. Instead of a client whose
    stream is silent by itself there is another one of its kind, whose silence tells of a death."""
    numbers = list(range(streams))
    storm = Storm(await t.hear_all(numbers, tokens))
    for _ in range(_OTHERS):
        if not (reticent := storm.reticent):
            break
        for client in reticent:
            numbers[client] += 8 * streams  # there are eight kinds
        storm.calm = await t.hear_all(numbers, tokens)
    done = asyncio.Event()

    async def keep_asking(number: int) -> list[Heard]:
        heard = [await t.hear(number, tokens)]
        while not done.is_set():
            heard.append(await t.hear(number, tokens))
        return heard

    clients = [asyncio.create_task(keep_asking(number)) for number in numbers]
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
    """SIGSTOP of a member, which the controller kills; seconds until it was noticed and the others served."""
    stopped, begin = t.ranks[0], time.monotonic()
    os.kill(t.fleet.workers[stopped].facts.pid, signal.SIGSTOP)
    await gone(t, stopped)
    noticed = time.monotonic() - begin
    await t.settled(within=60)
    await asyncio.sleep(max(0.0, seconds - noticed))
    return noticed


async def lose_one(t: Town, seconds: float, *, cut: bool) -> float:
    """A member that nobody can reach for so long, and nobody can kill: it stands still, or is cut off from the network
    and goes on by itself. Then it returns; what it does then is checked. Seconds until the others served."""
    lost, begin = t.ranks[0], time.monotonic()
    t.fleet.lose(lost)
    facts = t.fleet.out_of_reach[lost].facts
    with contextlib.ExitStack() as healed:
        if cut:
            healed.enter_context(cut_off(facts.pid))
        else:
            os.kill(facts.pid, signal.SIGSTOP)
            healed.callback(os.kill, facts.pid, signal.SIGCONT)
        await gone(t, lost)
        noticed = time.monotonic() - begin
        await t.settled(within=60)
        await asyncio.sleep(max(0.0, seconds - noticed))
    await fenced(t, facts.address)
    return noticed


async def gone(t: Town, name: str) -> None:
    """Until the others serve without it."""
    async with asyncio.timeout(60):
        while name in t.ranks or t.state.phase is not Phase.READY:  # noqa: ASYNC110  # as in Town.settled
            await asyncio.sleep(0.005)


async def fenced(t: Town, address: str) -> None:
    """Who returned has an epoch that is over: it is not ready, and takes no request; no router asks it for any."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = WorkerServiceStub(channel)
        async with asyncio.timeout(30):
            while (status := await answered(stub)) is None or status.ready:  # noqa: ASYNC110  # it is asked only
                await asyncio.sleep(0.05)
        assert t.state.spec is not None, "no epoch"
        assert status.identity.epoch < t.state.spec.epoch, status.identity
        before = status.generated_tokens
        await asyncio.sleep(2.0)
        later = await answered(stub)
        assert later is not None, "it went away again"
        assert (before, False) == (later.generated_tokens, later.ready), "it computes again"


async def answered(stub: Any) -> worker_pb2.GetStatusResponse | None:
    """What it says of itself, None while it does not answer."""
    try:
        status: worker_pb2.GetStatusResponse = await stub.GetStatus(worker_pb2.GetStatusRequest(), timeout=2)
    except grpc.aio.AioRpcError:
        return None
    return status


def quantile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def pause_rows(what: str, storm: Storm, restarted: list[float]) -> list[Row]:
    """Median, p99 and maximum, each beside that of a restart of the whole group."""
    rows = []
    for name, share in (("median", 0.5), ("p99", 0.99), ("maximum", 1.0)):
        pause, peer = quantile(storm.pauses, share), quantile(restarted, share)
        row = Row(f"pause after a death, {what}: {name}", round(pause, 3), "s", "restart of the whole group",
                  round(peer, 3), round(pause / peer, 3))  # fmt: skip
        rows.append(replace(row, goal=0.5, met=pause <= 0.5) if name == "p99" else row)
    return [
        *rows,
        Row(f"requests failed, {what}", len(storm.failed), "of", goal=0, met=not storm.failed),
        Row(f"streams that differ, {what}", len(storm.different), "of", goal=0, met=not storm.different),
        Row(f"longest silence undisturbed, {what}: median", round(statistics.median(storm.silences), 3), "s"),
        Row(f"longest silence undisturbed, {what}: p99", round(quantile(sorted(storm.silences), 0.99), 3), "s"),
        Row(f"clients whose stream is silent by itself, {what}", len(storm.reticent), f"of {STREAMS}"),
        Row(f"pause after a death, {what}, without these: p99", round(quantile(storm.pauses_of_talkers, 0.99), 3), "s"),
        Row(f"streams, {what}", len(storm.distinct), "streams"),
        Row(f"kills, {what}", len(storm.kills), "kills"),
    ]


async def deaths(model: Path, redis: EmbeddedRedis, kills: int, chance: random.Random) -> list[Row]:
    """Ranks, the controller and Redis are killed, with a spare and without, beside a restart of the whole group."""
    rows = []

    async def restart(t: Town, storm: Storm) -> None:
        for _ in range(3):
            await asyncio.sleep(0.5)
            storm.kills.append(time.monotonic())
            for name in (names := t.ranks):
                t.fleet.signal(name, signal.SIGKILL)
            while set(names) & set(t.ranks):  # noqa: ASYNC110  # as in Town.settled
                await asyncio.sleep(0.005)
            await t.settled(within=90)

    async with town(model, redis.url, ep_size=3) as t:
        restarted = (await under_load(t, STREAMS, TOKENS, partial(restart, t))).pauses
    for what, spares in (("with a spare", 1), ("without", 0)):
        async with town(model, redis.url, ep_size=3, spares=spares) as t:
            kill = partial(kill_some, t, rounds=kills, chance=chance, redis_pid=lambda: redis.pid or 0)
            rows += pause_rows(what, await under_load(t, STREAMS, TOKENS, kill), restarted)
    return rows


async def silences(model: Path, redis: EmbeddedRedis, kills: int, chance: random.Random) -> list[Row]:
    """A rank stands still for 30 s and is killed; it stands still, or is cut off, and cannot be killed."""
    ways: dict[str, Callable[[Town], Awaitable[float]]] = {
        "SIGSTOP for 30 s": partial(stop_one, seconds=30.0),
        "SIGSTOP for 30 s, out of reach, fenced on return": partial(lose_one, seconds=30.0, cut=False),
    }
    if WHY_NOT:
        print(f"left out, the partition: {WHY_NOT}")
    else:
        ways["partition for 30 s, fenced on return"] = partial(lose_one, seconds=30.0, cut=True)
    rows = []
    for what, way in ways.items():
        noticed: list[float] = []

        async def deed(_: Storm, t: Town, way: Callable[[Town], Awaitable[float]], into: list[float]) -> None:
            into.append(await way(t))

        async with town(model, redis.url, ep_size=3) as t:
            storm = await under_load(t, STREAMS, TOKENS, partial(deed, t=t, way=way, into=noticed))
        bad = len(storm.failed) + len(storm.different)
        rows += [
            Row(f"{what}: noticed and served around", round(noticed[0], 2), "s", goal=4.0, met=noticed[0] <= 4.0),
            Row(f"{what}: requests failed or different", bad, "of", goal=0, met=not bad),
        ]
    return rows


async def sizes(model: Path, redis: EmbeddedRedis, kills: int, chance: random.Random) -> list[Row]:
    """1 -> 2 -> 4 -> 3 -> 2 -> 1 under load, one epoch each."""
    wanted, took = (2, 4, 3, 2, 1), list[float]()
    async with town(model, redis.url, ep_size=1, drain_timeout=10.0) as t:

        async def scale(_: Storm) -> None:
            took.extend(await scale_through(t, wanted))

        storm = await under_load(t, STREAMS, TOKENS, scale)
    bad = len(storm.failed) + len(storm.different)
    steps = zip(((1, *wanted)[i : i + 2] for i in range(len(wanted))), took, strict=True)
    return [
        *(Row(f"scaled {a} to {b} under load, one epoch", round(seconds, 2), "s") for (a, b), seconds in steps),
        Row("scaling: requests failed or different", bad, "of", goal=0, met=not bad),
    ]


async def skews(model: Path, redis: EmbeddedRedis, kills: int, chance: random.Random) -> list[Row]:
    """Tokens want experts by Zipf's law; the load of the fullest rank before and after experts moved."""
    rows, zipf = [], zipf_model(model.parent / "zipf")
    for copies in (0, 2):
        async with town(zipf, redis.url, ep_size=4) as t:
            skew, what = await rebalanced(t, copies), f"Zipf over experts, 4 ranks, {copies} slots for copies"
        rows += [
            Row(f"{what}: hottest expert over mean", round(skew.hottest, 3), ""),
            Row(f"{what}: fullest rank over mean, before", round(skew.before, 3), ""),
            Row(f"{what}: fullest rank over mean, after", round(skew.after, 3), "", met=skew.after < skew.before),
            Row(f"{what}: experts moved", skew.moves, "experts"),
        ]
    return rows


PARTS = {"deaths": deaths, "silences": silences, "sizes": sizes, "skews": skews}


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill, stop, cut off and scale workers under load.")
    parser.add_argument("--kills", type=int, default=25, help="with a spare, and again without")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    bad = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as redis:
        model = make_checkpoint(Path(folder) / "tiny", "tiny", seed=1)
        for part in options.parts:
            rows = asyncio.run(PARTS[part](model, redis, options.kills, random.Random(options.seed)))
            add("chaos", rows, f"{part} of workers: {options.kills} kills asked for; {load_average()}")
            bad += [row.case for row in rows if row.goal == 0 and not row.met]
    assert not bad, bad


if __name__ == "__main__":
    main()

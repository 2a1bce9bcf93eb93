"""Kills in groups of several ranks whose tokens are on their way between them, during thirty-two streams of all kinds:
a rank, the controller, a rank and the controller at once, a router, Redis, a rank and Redis at once.

python -m tests.chaos.groups --rounds 50      the long form, as `make chaos` runs it; adds rows to the record `chaos`

Half of the rounds are played in a group of two, half in one of three. Two routers are processes of their own, and so
is Redis. In each round all streams begin, then something is killed at a random moment, and comes back; a client whose
stream breaks resumes it at a random router. The next round begins once the group is whole.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.bench.record import add, load_average
from tests.chaos.killable import Killable, KillableRedis, KillableRouter
from tests.chaos.listener import Listener
from tests.chaos.streams import Figures, count, partly_heard, undisturbed
from tests.chaos.town import Town, town

STREAMS = 32
KINDS = ("worker", "controller", "worker and controller", "router", "redis", "worker and redis")


class Group:
    """One group under attack, with all that is beside it."""

    def __init__(self, t: Town, routers: Sequence[KillableRouter], store: KillableRedis, chance: random.Random) -> None:
        self._t, self._routers, self._store, self._chance = t, routers, store, chance

    async def strike(self, kind: str) -> float:
        """Kill, start again what does not come back by itself, and wait for the group; the moment of the kill."""
        parts, victim, again = kind.split(" and "), "", list[Killable]()
        moment = time.monotonic()
        for part in parts:
            match part:
                case "worker":
                    victim = self._chance.choice(self._t.ranks)
                    self._t.fleet.signal(victim, signal.SIGKILL)
                case "controller":
                    await asyncio.sleep(self._chance.random() * 0.05 * (len(parts) - 1))  # in the middle of a repair
                    await self._t.kill_controller()
                case "router":
                    again.append(self._chance.choice(self._routers))
                case "redis":
                    again.append(self._store)
        for killable in again:
            await asyncio.to_thread(killable.kill)
            await asyncio.to_thread(killable.start)
        await self._t.settled(without=victim, within=90)
        return moment

    async def restart(self) -> float:
        """Kill every rank at once; seconds until all serve again: what a group costs that is one gang."""
        names, began = self._t.ranks, time.monotonic()
        for name in names:
            self._t.fleet.signal(name, signal.SIGKILL)
        while set(names) & set(self._t.ranks):  # noqa: ASYNC110  # nobody else is told
            await asyncio.sleep(0.005)
        await self._t.settled(within=90)
        return time.monotonic() - began


async def run(
    model: Path, folder: Path, sizes: Sequence[int], kinds: Sequence[str], tokens: int, seed: int, streams: int
) -> Figures:
    """For each size one group after another; each of `kinds` is one round in turn."""
    chance, figures, began = random.Random(seed), Figures(), time.monotonic()
    store = KillableRedis(folder / "redis")
    await asyncio.to_thread(store.start)
    settings = {"model_dir": str(model), "redis_url": store.url, "registry_poll": 0.1, "lease_seconds": 2.0}
    routers = [KillableRouter(f"router{i}", folder, **settings) for i in range(2)]
    addresses = [router.address for router in routers]
    try:
        await asyncio.gather(*(asyncio.to_thread(router.start) for router in routers))
        for size in sizes:
            async with town(model, store.url, ep_size=size, routes=False, kv_tokens=32768) as t:
                group = Group(t, routers, store, chance)
                calm = await undisturbed(streams, tokens, addresses, chance, figures)
                for kind in kinds[sizes.index(size) :: len(sizes)]:
                    running = [Listener(number, tokens) for number in range(streams)]
                    tasks = [asyncio.create_task(one.listen(addresses, chance)) for one in running]
                    share = chance.uniform(0.1, 0.6)
                    await partly_heard(running, tasks, share * sum(len(one.events) for one in calm))
                    moment = await group.strike(kind)
                    figures.kills[kind] += 1
                    await asyncio.gather(*tasks)
                    count(figures, kind, moment, calm, running, "")
                figures.restarts.append(await group.restart())
    finally:
        for router in routers:
            router.kill()
        await asyncio.to_thread(store.stop)
    figures.seconds = time.monotonic() - began
    return figures


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill ranks, controllers, routers and Redis during 32 streams.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    kinds = [KINDS[number // 2 % len(KINDS)] for number in range(options.rounds)]  # each in both sizes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint(folder / "tiny", "tiny", seed=1)
        figures = asyncio.run(run(model, folder, (2, 3), kinds, options.tokens, options.seed, STREAMS))
    print(figures)
    note = f"groups of 2 and 3: {options.rounds} rounds in {figures.seconds:.0f} s; {load_average()}"
    add("chaos", figures.rows("groups of 2 and 3: ", "restart of the whole group"), note)
    assert not figures.failed, figures.failed
    assert not figures.different, figures.different


if __name__ == "__main__":
    main()

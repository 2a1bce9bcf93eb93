"""Workers die, hang, come and go under load; no client notices but for a pause. Short forms of `make chaos`."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from pathlib import Path

from tests.chaos.town import Heard, Town, town

STREAMS, TOKENS = 12, 96


def same(calm: list[Heard], stormy: list[Heard]) -> None:
    """No request failed, and each said what it says when nothing happens."""
    assert [] == [heard.error for heard in (*calm, *stormy) if heard.error]
    different = [number for number, (a, b) in enumerate(zip(calm, stormy, strict=True)) if a.said != b.said]
    assert [] == different, [(calm[n].said[-30:], stormy[n].said[-30:]) for n in different[:1]]


async def test_killed_workers_cost_a_pause_and_nothing_else(tiny_model: Path, redis_url: str) -> None:
    """kill -9 of three members, one after another, during 12 streams; the controller dies too, in the middle of one
    repair. 0 failed, token by token as undisturbed."""
    chance = random.Random(5)
    async with town(tiny_model, redis_url, ep_size=3) as t:
        calm = await t.hear_all(range(STREAMS), TOKENS)
        running = asyncio.create_task(t.hear_all(range(STREAMS), TOKENS))
        kills = []
        for round_ in range(3):
            await asyncio.sleep(0.4)
            kills.append(time.monotonic())
            victim = chance.choice(t.ranks)
            if round_ == 1:
                t.fleet.signal(victim, signal.SIGKILL)
                await asyncio.sleep(chance.random() * 0.05)
                await t.kill_controller()
            else:
                await t.kill(victim)
            await t.settled()
        stormy = await running
        same(calm, stormy)
        pauses = sorted(p for moment in kills for heard in stormy if (p := heard.pause_after(moment)) is not None)
        print(f"pauses of {len(pauses)}: median {statistics.median(pauses):.3f} s, max {pauses[-1]:.3f} s")
        assert pauses, "nothing ran while workers died"


async def test_growing_and_shrinking_under_load_loses_nothing(tiny_model: Path, redis_url: str) -> None:
    """1 -> 2 -> 3 -> 1: one epoch each, 0 failed, every stream as undisturbed."""
    async with town(tiny_model, redis_url, ep_size=1, drain_timeout=10.0) as t:
        calm = await t.hear_all(range(STREAMS), TOKENS)
        running = asyncio.create_task(t.hear_all(range(STREAMS), TOKENS))
        for size in (2, 3, 1):
            epoch = t.state.epoch
            begin = time.monotonic()
            await t.scale(size)
            await t.settled(size)
            print(f"scaled to {size} in {time.monotonic() - begin:.2f} s")
            assert t.state.epoch == epoch + 1
        same(calm, await running)


async def test_a_stopped_worker_is_served_around(tiny_model: Path, redis_url: str) -> None:
    """SIGSTOP: its sockets stay open; its heartbeats end, it is killed and replaced, nothing is lost."""
    async with town(tiny_model, redis_url, ep_size=2) as t:
        calm = await t.hear_all(range(STREAMS), TOKENS)
        running = asyncio.create_task(t.hear_all(range(STREAMS), TOKENS))
        await asyncio.sleep(0.4)
        stopped, begin = t.ranks[0], time.monotonic()
        t.fleet.signal(stopped, signal.SIGSTOP)
        while stopped in t.ranks:  # noqa: ASYNC110  # the controller tells nobody else what it does
            await asyncio.sleep(0.01)
        noticed = time.monotonic() - begin
        assert noticed < 4.0
        print(f"noticed after {noticed:.2f} s")
        same(calm, await running)


def leaks(t: Town) -> list[str]:
    """Workers that nobody knows of."""
    return sorted(set(t.fleet.workers) - {hand.name for hand in t.state.workers})


async def test_many_epochs_leave_nothing_behind(tiny_model: Path, redis_url: str) -> None:
    """Epoch after epoch of the same members under load: no sockets, threads or memory pile up, and no token changes."""
    import psutil

    async with town(tiny_model, redis_url, ep_size=2) as t:
        calm = await t.hear_all(range(4), TOKENS)
        processes = [psutil.Process(worker.facts.pid) for worker in t.fleet.workers.values()]

        async def epochs(count: int) -> list[tuple[int, int, int]]:
            for _ in range(count):
                assert t.state.spec is not None
                epoch = t.state.epoch
                t.controller.rebalance("g0", epoch, t.state.spec.placement)
                while t.state.epoch == epoch or not t.is_settled():  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.005)
            return [(p.num_fds(), p.num_threads(), p.memory_info().rss) for p in processes]

        before = await epochs(5)
        running = asyncio.create_task(t.hear_all(range(4), TOKENS))
        after = await epochs(25)
        same(calm, await running)
        for (fds, threads, rss), (fds_now, threads_now, rss_now) in zip(before, after, strict=True):
            print(f"fds {fds} -> {fds_now}, threads {threads} -> {threads_now}, {(rss_now - rss) / 2**20:+.1f} MiB")
            assert fds_now <= fds + 6
            assert threads_now <= threads + 4
            assert rss_now - rss < 32 * 2**20
        assert [] == leaks(t)

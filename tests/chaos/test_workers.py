"""Workers die, hang, come and go under load; no client notices but for a pause. Short forms of `make chaos`."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

from tests.chaos.town import town
from tests.chaos.workers import Storm, kill_some, many_epochs, scale_through, stop_one, under_load
from tests.chaos.zipf import rebalanced, zipf_model

STREAMS, TOKENS = 8, 64


async def test_killed_workers_cost_a_pause_and_nothing_else(tiny_model: Path, redis_url: str) -> None:
    """kill -9 of three members, one after another, during 12 streams; the controller dies too, in the middle of one
    repair. 0 failed, token by token as undisturbed."""
    async with town(tiny_model, redis_url, ep_size=3) as t:

        async def kill(storm: Storm) -> None:
            await kill_some(t, storm, 3, random.Random(5), lambda: 0)

        storm = await under_load(t, STREAMS, TOKENS, kill)
        storm.check()
        pauses = storm.pauses
        print(f"pauses of {len(pauses)}: median {statistics.median(pauses):.3f} s, longest {pauses[-1]:.3f} s")


async def test_growing_and_shrinking_under_load_loses_nothing(tiny_model: Path, redis_url: str) -> None:
    """1 -> 2 -> 3 -> 1: one epoch each, 0 failed, every stream as undisturbed."""
    async with town(tiny_model, redis_url, ep_size=1, drain_timeout=10.0) as t:

        async def scale(storm: Storm) -> None:
            print("seconds each", [round(s, 2) for s in await scale_through(t, (2, 3, 1))])

        (await under_load(t, STREAMS, TOKENS, scale)).check()


async def test_a_stopped_worker_is_served_around(tiny_model: Path, redis_url: str) -> None:
    """SIGSTOP: its sockets stay open; its heartbeats end, it is killed and replaced, nothing is lost."""
    async with town(tiny_model, redis_url, ep_size=2) as t:

        async def stop(storm: Storm) -> None:
            noticed = await stop_one(t, 0.0)
            print(f"noticed after {noticed:.2f} s")

        (await under_load(t, STREAMS, TOKENS, stop)).check()


async def test_a_skewed_load_is_spread(tmp_path: Path, redis_url: str) -> None:
    """Tokens want experts by Zipf's law. Experts move by what they had to do, hot ones get copies: the fullest rank
    comes nearer to the mean, and the answers stay the same."""
    async with town(zipf_model(tmp_path / "zipf"), redis_url, ep_size=4) as t:
        calm = await t.hear_all(range(4), TOKENS)
        skew = await rebalanced(t, copies=2)
        print(f"hottest expert {skew.hottest:.2f} of the mean; fullest rank over the mean: {skew.before:.2f} before, "
              f"{skew.after:.2f} after {skew.moves} moves")  # fmt: skip
        assert skew.hottest > 2.0, "this load is even"
        assert skew.after < skew.before
        storm = Storm(calm, await t.hear_all(range(4), TOKENS))
        storm.check()


async def test_many_epochs_leave_nothing_behind(tiny_model: Path, redis_url: str) -> None:
    """Epoch after epoch of the same members under load: no sockets, threads or memory pile up, and no token changes."""
    async with town(tiny_model, redis_url, ep_size=2) as t:
        before = await many_epochs(t, 5)
        after = before

        async def change(storm: Storm) -> None:
            nonlocal after
            after = await many_epochs(t, 12)

        (await under_load(t, 4, TOKENS, change)).check()
        for (files, threads, size), (files_now, threads_now, size_now) in zip(before, after, strict=True):
            assert files_now <= files + 6
            assert threads_now <= threads + 4
            assert size_now - size < 32 * 2**20
        assert [] == t.forgotten

"""Workers die, hang, come and go under load; no client notices but for a pause. Short forms of `make chaos`."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest

from tests.chaos.cut import WHY_NOT
from tests.chaos.leaks import BOUNDS, census, reconfigure
from tests.chaos.town import town
from tests.chaos.workers import Storm, kill_some, lose_one, scale_through, stop_one, under_load
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
    """SIGSTOP: its sockets stay open; its heartbeats end, it is killed and replaced, nothing is lost. Then one that
    nobody can kill: it is replaced as well, and when it returns its epoch is over."""
    async with town(tiny_model, redis_url, ep_size=2) as t:

        async def stop(storm: Storm) -> None:
            noticed = await stop_one(t, 0.0), await lose_one(t, 0.0, cut=False)
            print("noticed after {:.2f} s and {:.2f} s".format(*noticed))

        (await under_load(t, STREAMS, TOKENS, stop)).check()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
async def test_a_worker_that_is_cut_off_is_served_around(tiny_model: Path, redis_url: str) -> None:
    """Every packet from and to it is dropped, and nobody can kill it: the others go on, and once the network is whole
    again it computes for nobody."""
    async with town(tiny_model, redis_url, ep_size=3) as t:

        async def cut(storm: Storm) -> None:
            print(f"noticed after {await lose_one(t, 0.0, cut=True):.2f} s")

        (await under_load(t, STREAMS, TOKENS, cut)).check()


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
    """Experts change places epoch after epoch under load, a worker is replaced: no file, socket, thread, process, key
    or memory piles up, and no token changes."""
    async with town(tiny_model, redis_url, ep_size=2) as t:
        await reconfigure(t, 20, 20)
        before = await census(t, redis_url)

        async def change(storm: Storm) -> None:
            await reconfigure(t, 60, 30)

        (await under_load(t, 4, TOKENS, change)).check()
        grown = (await census(t, redis_url)).grown(before)
        print(grown)
        bounds = {**BOUNDS, "temporary files": math.inf}  # others write there
        assert {} == {name: more for name, more in grown.items() if more > bounds[name]}

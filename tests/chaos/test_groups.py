"""The short form of the chaos of groups; `make chaos` has the long one."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.groups import run


async def test_a_group_outlives_its_rank_its_controller_a_router_and_redis(tiny_model: Path, tmp_path: Path) -> None:
    """In a group of three, under streams of all kinds: a rank and the controller die at once, then a router, then a
    rank and Redis at once. 0 failed, every stream as undisturbed."""
    kinds = ("worker and controller", "router", "worker and redis")
    figures = await run(tiny_model, tmp_path, (3,), kinds, tokens=48, seed=1, streams=16)
    print(figures)

    assert dict.fromkeys(kinds, 1) == dict(figures.kills)
    assert [] == figures.failed
    assert [] == figures.different

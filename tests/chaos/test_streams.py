"""The short form of the chaos of streams; `make chaos` has the long one."""

from __future__ import annotations

from pathlib import Path

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.chaos.streams import run


async def test_no_stream_fails_and_each_says_what_it_says_undisturbed(tmp_path: Path) -> None:
    """A worker, a router and Redis are killed with SIGKILL during 32 streams; clients resume."""
    model = make_checkpoint(tmp_path / "tiny", "tiny", seed=1)
    figures = await run(model, tmp_path, rounds=3, tokens=96, seed=1)
    print(figures)

    assert {"worker": 1, "router": 1, "redis": 1} == dict(figures.kills)
    assert [] == figures.failed
    assert [] == figures.different
    assert figures.resumed > 0

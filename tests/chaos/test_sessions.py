"""The short form of the chaos of sessions; `make chaos` has the long one."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.sessions import CLIENTS, run


async def test_every_acknowledged_turn_is_there_exactly_once(tmp_path: Path) -> None:
    """Redis and both routers are killed with SIGKILL during 64 conversations, and come back."""
    figures = await run(tmp_path, kills=3, seed=1)
    print(figures)

    assert {"redis": 1, "router0": 1, "router1": 1} == dict(figures.kills)
    assert figures.told >= CLIENTS

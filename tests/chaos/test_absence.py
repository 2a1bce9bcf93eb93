"""The short form of Redis being gone; `make chaos` has half a minute of it."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.absence import run


async def test_redis_may_be_gone_for_longer_than_any_lease(tmp_path: Path) -> None:
    """Running streams end well and are what they would have been, stateless requests are served, session requests are
    UNAVAILABLE with a hint; afterwards every turn is there."""
    figures = await run(tmp_path, seconds=2.0, lease_seconds=0.6)
    print(figures)

    assert (figures.streams_failed, figures.streams_different, figures.turns_lost) == (0, 0, 0)
    assert set(figures.meanwhile) == {"stateless OK", "session UNAVAILABLE"}
    assert figures.without_hint == 0

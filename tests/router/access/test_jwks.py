"""A provider of keys that is silent, slow, or talks without end."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from shoal.router.access.jwks import Jwks
from shoal.router.access.token import Tokens
from shoal.router.reading import read_within
from tests.router.access.showing import Ring


async def test_a_silent_provider_holds_nobody_up_whose_key_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old keys go on to count while it is asked; whoever comes meanwhile starts no further question."""
    monkeypatch.setattr("shoal.router.access.jwks._PATIENCE", 0.05)
    ring, clock, asked = Ring(tmp_path), [0.0], list[float]()
    config = ring.config()
    jwks = Jwks(config.jwks, "", 300.0, lambda: clock[0])
    tokens = Tokens(config, jwks, time.time)
    assert (await tokens.caller(ring.provider.token("user"))).role == "user"
    answers, fetch = threading.Event(), jwks._fetch

    def silent() -> bytes:
        asked.append(clock[0])
        answers.wait()
        return fetch()

    jwks._fetch = silent  # type: ignore[method-assign]  # to hold it
    clock[0] = 301.0
    callers = await asyncio.gather(*(tokens.caller(ring.provider.token(role)) for role in ("admin", "viewer")))
    clock[0] = 400.0
    await tokens.caller(ring.provider.token("user"))
    answers.set()
    await jwks.refresh()

    assert [caller.role for caller in callers] == ["admin", "viewer"]
    assert asked == [301.0]


class Dripping:
    """Says a byte at a time, for ever."""

    def read1(self, n: int = -1, /) -> bytes:
        """See `Answer`."""
        return b"x"


def test_an_answer_without_end_is_left() -> None:
    """By its time, whatever its bytes; by its size, whatever its time."""
    with pytest.raises(TimeoutError):
        read_within(Dripping(), 1 << 40, 0.01)
    assert read_within(Dripping(), 100, 10.0) == b"x" * 100

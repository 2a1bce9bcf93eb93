"""Ranks as plain processes, as they share one GPU where there is no other."""

from __future__ import annotations

from pathlib import Path

from tests.workers.engines import random_tokens, sequence
from tests.workers.plain_ranks import generate


def test_two_ranks_that_share_a_device_give_the_tokens_of_one(tiny: Path) -> None:
    """Everything that they exchange passes through the host, and the tokens are the same."""
    sequences = [sequence(random_tokens(n, 1000, seed=n), name=f"r{n}", max_tokens=6) for n in (5, 40)]
    (alone,) = generate(tiny, [sequences])
    first, second = generate(tiny, [sequences[:1], sequences[1:]], place="GPU-0")
    assert alone.tokens == first.tokens + second.tokens
    assert [False, True, True] == [rank.staged for rank in (alone, first, second)]

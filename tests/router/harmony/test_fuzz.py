"""The short form of the fuzzing of prompts; `make soak` has a million strings."""

from __future__ import annotations

from shoal.router.tokenizer import Tokenizer
from tests.router.harmony.fuzz import Fuzz


def test_nothing_that_is_written_becomes_a_control_token(tokenizer: Tokenizer) -> None:
    """In any place that has words, however it is cut into parts."""
    Fuzz(tokenizer).run(6_000, seed=3)

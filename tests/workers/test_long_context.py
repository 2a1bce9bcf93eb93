"""A short form of what `make soak` does at 32k and beyond 100k positions."""

from __future__ import annotations

from pathlib import Path

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.workers.long_context import LONG, deviation


def test_four_thousand_tokens_equal_transformers(tmp_path: Path) -> None:
    """Logits stay within the tolerance beyond the original context of 4,096, with the published rope and window."""
    largest, relative = deviation(make_checkpoint(tmp_path / "model", LONG, seed=3), 4300)
    assert largest < 1e-3
    assert relative < 1e-4

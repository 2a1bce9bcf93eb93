"""`shoal.workers.checkpoint.fingerprint`; test_checkpoint compares it across layouts and shards."""

from __future__ import annotations

from pathlib import Path

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.workers.checkpoint import open_checkpoint
from tests.checkpoint.broken import MICRO, edit_json


def test_fingerprint_tells_weights_apart(tmp_path: Path, hf: Path) -> None:
    """Another seed of the same shape has another fingerprint; the same seed again has the same."""
    make_checkpoint(tmp_path / "other", MICRO, seed=8)
    make_checkpoint(tmp_path / "same", MICRO, seed=7)
    prints = [open_checkpoint(path).fingerprint for path in (hf, tmp_path / "other", tmp_path / "same")]
    assert prints[0] == prints[2] != prints[1]
    assert all(len(value) == 64 for value in prints)


def test_fingerprint_covers_the_config(tmp_path: Path) -> None:
    """The same weights computed with another constant are another model; another indentation is not."""
    path = make_checkpoint(tmp_path / "made", MICRO)
    before = open_checkpoint(path).fingerprint
    edit_json(path / "config.json", lambda table: table)
    assert open_checkpoint(path).fingerprint == before
    edit_json(path / "config.json", lambda table: table.update(swiglu_limit=6.0))
    assert open_checkpoint(path).fingerprint != before

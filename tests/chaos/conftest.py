"""The checkpoint that is served while things break."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("chaos") / "tiny", "tiny", seed=1)

"""Fixtures of the cluster's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "tiny")

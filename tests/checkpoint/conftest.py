"""One small checkpoint in each layout, made once; tests that break one work on a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.checkpoint.broken import MICRO


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model in the Hugging Face layout; not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("hf") / "micro", MICRO, seed=7)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in several files with an index; not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("sharded") / "micro", MICRO, seed=7, largest_shard=20_000)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in OpenAI's layout, below `original/`; not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("original") / "micro", MICRO, seed=7, layout="original")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a checkpoint to where a test may break it."""

    def copied(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / "copy"))

    return copied

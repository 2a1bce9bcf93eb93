"""One cluster for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.e2e.served import Client, Served, serving, small_disk


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "tiny")


@pytest.fixture(scope="session")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Redis, Ray, two expert-parallel workers and a router, behind a real socket; it may be broken on purpose."""
    with (
        small_disk(tmp_path_factory.mktemp("cluster")) as state_dir,
        serving(tiny_model, state_dir, ("cluster.chaos=true",), RAY_AUTH_MODE="disabled") as served,
    ):
        served.wait_until_ready()
        yield served


@pytest.fixture
def client(cluster: Served) -> Iterator[Client]:
    """A client of it."""
    run = cluster.running()
    assert run is not None, cluster.output()
    client = Client(run)
    yield client
    client.close()

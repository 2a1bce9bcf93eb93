"""Checkpoints shared by the worker's tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from shoal.cluster.checkpoint.make import make_checkpoint
from tests.workers.engines import Make, make_engine

torch.set_num_threads(1)  # transformers' threads wait for each other by spinning: worse than useless on a busy machine


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights: 4 layers, 8 experts, window 32."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "model", "tiny", seed=1)


@pytest.fixture(params=["host", "device", "overlap"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes engines that choose tokens on the host, on the device, and there with steps that overlap."""
    sampler = "host" if request.param == "host" else "device"
    return partial(make_engine, sampler=sampler, overlap=request.param == "overlap")

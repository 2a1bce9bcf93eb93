"""Experts in a GPU's order, laid out here on the CPU: what loading does where that order cannot hold a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.kernels import fragments, moe_matmul
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.workers.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from shoal.workers.model.weights import load_experts, sample_expert

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def order_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def permute(w: ExpertWeights, *, int8: bool = False) -> moe_matmul.Weights:
        return fragments.permute(w)

    monkeypatch.setattr(moe_matmul, "prepare", permute)


def test_the_sample_by_which_workers_know_each_other_fits(tiny: Path) -> None:
    """Its made-up scales stay within what the order holds."""
    config = open_checkpoint(tiny).config

    assert sample_expert(config, CPU).gate_up.num_experts == 1


def test_a_scale_that_does_not_fit_is_the_checkpoints_fault(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typed error that names the tensor, not a traceback."""
    checkpoint = open_checkpoint(tiny)
    read = Checkpoint.experts

    def too_large(self: Checkpoint, name: str, ids: Sequence[int]) -> Tensor:
        found = read(self, name, ids)
        return torch.full_like(found, 200) if name.endswith("scales") else found

    monkeypatch.setattr(Checkpoint, "experts", too_large)

    with pytest.raises(CheckpointError, match=r"gate_up_proj_scales: a scale of 2\^73 is above 2\^1"):
        load_experts(checkpoint, 0, [0, 1], CPU)

"""From float32 parameters to a published checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.cluster.nano.export import export
from shoal.cluster.nano.model import build, folded
from shoal.cluster.nano.published import is_packed, rounded
from shoal.cluster.nano.shape import NANO
from shoal.kernels import mxfp4
from shoal.workers.checkpoint import open_checkpoint
from tests.nano.conftest import NANO_DIR


def test_what_is_exported_is_what_training_rounded_to(tmp_path: Path) -> None:
    """Every tensor read back from the files equals the value that quantisation-aware training computed with."""
    weights = {name: parameter.detach() for name, parameter in build(NANO, 3).named_parameters()}
    export(weights, NANO_DIR / "tokenizer.json", tmp_path / "made")
    checkpoint = open_checkpoint(tmp_path / "made")
    assert NANO.config() == checkpoint.config
    for name, weight in folded(weights).items():
        if is_packed(name):
            blocks, scales = (checkpoint.tensor(f"{name}_{part}") for part in ("blocks", "scales"))
            stored = mxfp4.dequantize(blocks, scales, torch.float32).transpose(-1, -2)
        else:
            stored = checkpoint.tensor(name).float()
        torch.testing.assert_close(stored, rounded(name, weight), rtol=0, atol=0, msg=name)


def test_other_files_stay(tmp_path: Path) -> None:
    """The model card beside the weights survives a new export."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "README.md").write_text("card")
    weights = {name: parameter.detach() for name, parameter in build(NANO, 3).named_parameters()}
    export(weights, NANO_DIR / "tokenizer.json", tmp_path / "made")
    assert (tmp_path / "made" / "README.md").read_text() == "card"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]

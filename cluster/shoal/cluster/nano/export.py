"""From a training run to a checkpoint directory: `python -m shoal.cluster.nano.export RUN DIRECTORY`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shoal.cluster.checkpoint import side_files
from shoal.cluster.checkpoint.shards import ShardWriter, plan_shards
from shoal.cluster.nano.model import folded
from shoal.cluster.nano.published import is_packed
from shoal.cluster.nano.shape import NANO
from shoal.cluster.nano.train import STATE
from shoal.kernels import mxfp4
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.checkpoint.checkpoint import byte_view
from shoal.workers.checkpoint.layout import hf_specs


def published_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained parameters in float32, experts [E, in, out] -> the stored tensors: MXFP4 bytes and bf16."""
    stored = {}
    for name, weight in folded(weights).items():
        if is_packed(name):
            blocks, scales = mxfp4.quantize(weight.transpose(-1, -2).contiguous())
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
        else:
            stored[name] = weight.to(torch.bfloat16)
    return stored


def export(weights: Mapping[str, Tensor], tokenizer: Path, target: Path) -> None:
    """Writes the files of a checkpoint into `target`, each whole or not at all; other files there stay.

    Raises OSError, and CheckpointError if what was written cannot be opened.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        staging = Path(name)
        contents = {
            "config.json": side_files.hf_config(NANO),
            "generation_config.json": side_files.generation_config(NANO),
            "tokenizer_config.json": side_files.tokenizer_config(NANO),
        }
        for file, content in contents.items():
            (staging / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(tokenizer, staging / "tokenizer.json")
        specs = hf_specs(NANO.config())
        stored = published_tensors(weights)
        assert {spec.name for spec in specs} == set(stored), {spec.name for spec in specs} ^ set(stored)
        with ShardWriter(staging, plan_shards(specs, "hf")) as writer:
            for spec in specs:
                assert tuple(stored[spec.name].shape) == spec.shape, (spec, stored[spec.name].shape)
                writer.write(spec.name, 0, byte_view(stored[spec.name].contiguous()))
        open_checkpoint(staging)
        for path in staging.iterdir():
            os.replace(path, target / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a training run")
    parser.add_argument("target", type=Path, help="the checkpoint directory")
    parser.add_argument("--state", default=STATE, help="which of the run's states")
    arguments = parser.parse_args()
    state = torch.load(arguments.run / arguments.state, weights_only=True)
    export(state["average"], arguments.run / "tokenizer.json", arguments.target)
    for name in ("log.csv", "exams.csv"):
        if (arguments.run / name).exists():
            shutil.copyfile(arguments.run / name, arguments.target / name)
    print(f"step {state['step']} of the run is in {arguments.target}")


if __name__ == "__main__":
    main()

"""Bytes arrive where they belong, whatever the parts and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from shoal.workers.checkpoint import CheckpointError, open_checkpoint
from shoal.workers.checkpoint.reader import Reader


@pytest.mark.parametrize(("threads", "staged"), [(1, False), (3, False), (1, True), (3, True)])
def test_every_tensor_is_read_as_one_thread_reads_it(hf: Path, threads: int, staged: bool) -> None:
    """In parts that end nowhere in particular, several tensors at once, through a ring of buffers or not."""
    with open_checkpoint(hf) as plain, open_checkpoint(hf) as checkpoint:
        checkpoint.reader = Reader(threads=threads, staged=staged, part=997)
        names = list(plain.slices)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(checkpoint.tensor, names))
        assert all(torch.equal(plain.tensor(name), tensor) for name, tensor in zip(names, found, strict=True))
        assert plain.bytes_read == checkpoint.bytes_read
        experts = "model.layers.0.mlp.experts.down_proj_blocks"
        assert torch.equal(plain.experts(experts, [3, 1, 2]), checkpoint.experts(experts, [3, 1, 2]))


@pytest.mark.parametrize("staged", [False, True])
def test_a_file_that_ends_sooner_is_told(hf: Path, tmp_path: Path, staged: bool) -> None:
    """Whichever thread meets the end; and the next read works."""
    import shutil

    copy = Path(shutil.copytree(hf, tmp_path / "copy"))
    with open_checkpoint(copy) as checkpoint:
        checkpoint.reader = Reader(threads=2, staged=staged, part=997)
        whole = checkpoint.tensor("model.embed_tokens.weight")
        (weights,) = [file.path for file in checkpoint.files][:1]
        size = weights.stat().st_size
        last = max(checkpoint.slices, key=lambda name: checkpoint.slices[name].offset)
        with open(weights, "r+b") as file:
            file.truncate(size - 1)
        with pytest.raises(CheckpointError, match="truncated while it was read"):
            checkpoint.tensor(last)
        assert torch.equal(whole, checkpoint.tensor("model.embed_tokens.weight"))

"""`shoal.workers.checkpoint.checkpoint`, against files written by the safetensors package."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.workers.checkpoint import CheckpointError, open_checkpoint
from shoal.workers.checkpoint.checkpoint import runs
from shoal.workers.checkpoint.directory import SINGLE
from shoal.workers.checkpoint.layout import is_expert_tensor
from tests.checkpoint.broken import edit_json, edit_tensors

Copy = Callable[[Path], Path]
BLOCKS = "model.layers.1.mlp.experts.gate_up_proj_blocks"
SCALES = "model.layers.1.mlp.experts.gate_up_proj_scales"
NORM = "model.norm.weight"


def test_reads_what_the_package_reads(hf: Path) -> None:
    """Every tensor equals the one that the safetensors package reads, and no other is there."""
    expected = load_file(hf / SINGLE)
    with open_checkpoint(hf) as checkpoint:
        assert set(expected) == set(checkpoint.slices)
        for name, tensor in expected.items():
            read = checkpoint.tensor(name)
            assert (tensor.dtype, tensor.shape) == (read.dtype, read.shape)
            assert torch.equal(tensor, read)


def test_layouts_and_shards_hold_the_same(hf: Path, sharded: Path, original: Path) -> None:
    """One seed gives the same config, tensors and fingerprint in one file, in several, and in OpenAI's layout."""
    assert len(list(sharded.glob("*.safetensors"))) > 3
    with open_checkpoint(hf) as one, open_checkpoint(sharded) as several, open_checkpoint(original) as other:
        assert (other.layout, one.layout) == ("original", "hf")
        assert one.config == several.config == other.config
        assert one.fingerprint == several.fingerprint == other.fingerprint
        for name in one.slices:
            assert torch.equal(one.tensor(name), several.tensor(name))
            assert torch.equal(one.tensor(name), other.tensor(name))


def test_splits_the_fused_projection(original: Path) -> None:
    """q, k and v are the rows of OpenAI's fused tensor in that order, each read by its own bytes."""
    fused = load_file(original / "original" / SINGLE)["block.1.attn.qkv.weight"]
    q, k, v = fused[:32], fused[32:48], fused[48:]
    with open_checkpoint(original) as checkpoint:
        assert torch.equal(k, checkpoint.tensor("model.layers.1.self_attn.k_proj.weight"))
        assert k.nbytes == checkpoint.bytes_read
        assert torch.equal(q, checkpoint.tensor("model.layers.1.self_attn.q_proj.weight"))
        assert torch.equal(v, checkpoint.tensor("model.layers.1.self_attn.v_proj.weight"))


@pytest.mark.parametrize("ids", [[0, 1], [3, 1], [2], [1, 2, 3], [2, 2], []])
def test_experts_are_slices(hf: Path, ids: list[int]) -> None:
    """The slices come in the order asked for, doubled where asked twice, in the tensor's dtype."""
    with open_checkpoint(hf) as checkpoint:
        for name in (BLOCKS, SCALES, BLOCKS.replace("blocks", "bias")):
            assert torch.equal(
                checkpoint.tensor(name)[torch.tensor(ids, dtype=torch.long)], checkpoint.experts(name, ids)
            )


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_a_rank_of_two_reads_half(layout: str, request: pytest.FixtureRequest) -> None:
    """Two ranks read every expert byte once between them, each exactly half."""
    directory: Path = request.getfixturevalue(layout)
    read = []
    for ids in ([0, 1], [2, 3]):
        with open_checkpoint(directory) as checkpoint:
            for name in filter(is_expert_tensor, checkpoint.slices):
                checkpoint.experts(name, ids)
            read.append(checkpoint.bytes_read)
            whole = sum(part.nbytes for name, part in checkpoint.slices.items() if is_expert_tensor(name))
    assert [whole / 2, whole / 2] == read


def test_only_the_asked_bytes_are_touched(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adjacent experts are one read, and no read leaves their bytes: seen at the system call."""
    calls: list[tuple[int, int]] = []
    preadv = os.preadv

    def spy(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append((offset, sum(map(len, buffers))))
        return preadv(fd, buffers, offset)

    with open_checkpoint(hf) as checkpoint:
        part = checkpoint.slices[BLOCKS]
        stride = part.nbytes // 4
        monkeypatch.setattr(os, "preadv", spy)
        checkpoint.experts(BLOCKS, [1, 2, 0])
    assert calls == [(part.offset + stride, 2 * stride), (part.offset, stride)]


def test_runs() -> None:
    """Only ascending neighbours are one run."""
    assert list(runs([])) == []
    assert list(runs([5])) == [(0, 1)]
    assert list(runs([2, 1, 0])) == [(0, 1), (1, 2), (2, 3)]
    assert list(runs([0, 1, 3, 4])) == [(0, 2), (2, 4)]


def test_reads_from_several_threads(hf: Path) -> None:
    """Reads at the same time do not disturb one another, nor the count."""
    with open_checkpoint(hf) as checkpoint:
        names = list(checkpoint.slices)
        expected = {name: checkpoint.tensor(name) for name in names}
        once = checkpoint.bytes_read
        wrong: list[str] = []

        def read() -> None:
            wrong.extend(name for name in names if not torch.equal(expected[name], checkpoint.tensor(name)))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert checkpoint.bytes_read == 5 * once


def test_norms_may_be_fp32(copy: Copy, original: Path) -> None:
    """Norm scales in fp32, as OpenAI's code declares them, are read as they are."""
    root = copy(original)
    edit_tensors(root / "original", lambda t: t.update({"norm.scale": t["norm.scale"].float()}))
    with open_checkpoint(root) as checkpoint:
        assert checkpoint.tensor(NORM).dtype == torch.float32


def test_refuses_nan_scales_where_they_are_read(copy: Copy, hf: Path) -> None:
    """A scale byte of 255 is refused by whoever reads that expert, with its place, and by nobody else."""
    root = copy(hf)

    def poison(tensors: dict[str, Tensor]) -> None:
        tensors[SCALES][2, 5, 1] = 255

    edit_tensors(root, poison)
    with open_checkpoint(root) as checkpoint:
        checkpoint.experts(SCALES, [0, 1, 3])
        text = rf"{SINGLE}: tensor {SCALES}: NaN scale in expert 2, row 5, group 1: expected bytes 0 to 254, found 255"
        with pytest.raises(CheckpointError, match=text):
            checkpoint.experts(SCALES, [3, 2])
        with pytest.raises(CheckpointError, match=text):
            checkpoint.tensor(SCALES)


def test_leaves_no_file_open(copy: Copy, sharded: Path) -> None:
    """Neither a closed checkpoint nor a refused one holds descriptors."""
    before = len(os.listdir("/proc/self/fd"))
    open_checkpoint(sharded).close()
    root = copy(sharded)
    edit_json(root / "config.json", lambda table: table.update(vocab_size=640))
    with pytest.raises(CheckpointError):
        open_checkpoint(root)
    assert before == len(os.listdir("/proc/self/fd"))


def test_reads_what_was_checked(copy: Copy, hf: Path) -> None:
    """A file replaced after it was opened does not change what is read."""
    root = copy(hf)
    with open_checkpoint(root) as checkpoint:
        expected = load_file(root / SINGLE)[NORM]
        (root / "new").write_bytes(b"something else")
        os.replace(root / "new", root / SINGLE)
        assert torch.equal(expected, checkpoint.tensor(NORM))

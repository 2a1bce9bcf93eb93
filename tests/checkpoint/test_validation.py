"""`shoal.workers.checkpoint.validation`: every way in which weights and config can disagree."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.workers.checkpoint import CheckpointError, open_checkpoint
from shoal.workers.checkpoint.directory import INDEX, SINGLE
from tests.checkpoint.broken import edit_json, edit_tensors, error_of, header_of

Copy = Callable[[Path], Path]
BLOCKS = "model.layers.1.mlp.experts.gate_up_proj_blocks"
NORM = "model.norm.weight"


def _widen(tensors: dict[str, Tensor]) -> None:
    tensors[NORM] = torch.ones(65, dtype=torch.bfloat16)


def _retype(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()


BREAKS: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (_widen, rf"{SINGLE}: tensor {NORM}: wrong shape: expected \(64,\), found \(65,\)"),
    (_retype, rf"{SINGLE}: tensor lm_head.weight: wrong dtype: expected BF16, found F32"),
    (lambda t: t.pop(BLOCKS), rf"{SINGLE}: tensor {BLOCKS}: missing tensor: expected U8 \(4, 64, 2, 16\)"),
    (lambda t: t.update(extra=torch.zeros(1)), rf"{SINGLE}: tensor extra: unknown tensor"),
]


@pytest.mark.parametrize(("change", "text"), BREAKS, ids=["shape", "dtype", "missing", "unknown"])
def test_refuses_other_tensors(copy: Copy, hf: Path, change: Callable[[dict[str, Tensor]], object], text: str) -> None:
    """A wrong shape or dtype, a missing or an unknown tensor is one error with file, tensor, expected and found."""
    root = copy(hf)
    edit_tensors(root, change)
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(root)


def test_refuses_a_wrong_fused_projection(copy: Copy, original: Path) -> None:
    """In OpenAI's layout the error names the tensor as it is stored there."""
    root = copy(original)
    edit_tensors(root / "original", lambda t: t.update({"block.0.attn.qkv.bias": torch.zeros(63).bfloat16()}))
    with pytest.raises(CheckpointError, match=r"block.0.attn.qkv.bias: wrong shape: expected \(64,\), found \(63,\)"):
        open_checkpoint(root)


@pytest.mark.parametrize("key", ["num_local_experts", "num_hidden_layers", "hidden_size", "vocab_size"])
def test_refuses_a_config_of_another_model(copy: Copy, hf: Path, key: str) -> None:
    """Weights are held against what config.json demands, whichever of the two is wrong."""
    root = copy(hf)
    edit_json(root / "config.json", lambda table: table.update({key: int(str(table[key])) * 2, "layer_types": None}))
    with pytest.raises(CheckpointError, match=r": (missing tensor|wrong shape|unknown tensor): expected "):
        open_checkpoint(root)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_refuses_a_truncated_file(copy: Copy, hf: Path, keep: int) -> None:
    """A file that ends early, wherever, is refused when it is opened."""
    root = copy(hf)
    size = (root / SINGLE).stat().st_size
    os.truncate(root / SINGLE, keep % size)
    with pytest.raises(CheckpointError, match=rf"{SINGLE}: .*truncated"):
        open_checkpoint(root)


def test_refuses_a_missing_shard(copy: Copy, sharded: Path) -> None:
    """A shard that the index names and that is not there is named."""
    root = copy(sharded)
    victim = sorted(root.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"{victim.name}: missing file"):
        open_checkpoint(root)


def test_index_and_headers_must_agree(copy: Copy, sharded: Path) -> None:
    """A tensor in another shard than the index says, or in none, is refused."""
    root = copy(sharded)

    def move(table: dict[str, object]) -> None:
        weights = table["weight_map"]
        assert isinstance(weights, dict)
        weights[NORM] = weights["model.embed_tokens.weight"]

    edit_json(root / INDEX, move)
    with pytest.raises(CheckpointError, match=f"tensor {NORM}: not where the index says"):
        open_checkpoint(root)

    def invent(table: dict[str, object]) -> None:
        weights = table["weight_map"]
        assert isinstance(weights, dict)
        weights["ghost"] = weights["model.embed_tokens.weight"]

    (root / INDEX).write_text((sharded / INDEX).read_text())
    edit_json(root / INDEX, invent)
    with pytest.raises(CheckpointError, match="tensor ghost: missing tensor"):
        open_checkpoint(root)


def test_refuses_a_tensor_in_two_files(copy: Copy, original: Path) -> None:
    """Without an index, a tensor may be in one file only."""
    root = copy(original) / "original"
    (root / "again.safetensors").write_bytes((root / SINGLE).read_bytes())
    os.rename(root / SINGLE, root / "once.safetensors")
    with pytest.raises(CheckpointError, match="also in another file"):
        open_checkpoint(root)


def test_names_the_index_when_no_shard_has_a_tensor(copy: Copy, sharded: Path) -> None:
    """A tensor that neither the index nor any shard holds is missing from the index."""
    root = copy(sharded)
    index = json.loads((root / INDEX).read_text())
    edit_tensors(root, lambda tensors: tensors.pop(NORM), index["weight_map"].pop(NORM))
    (root / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{INDEX}: tensor {NORM}: missing tensor"):
        open_checkpoint(root)


@pytest.fixture(scope="module")
def victim(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose weight file each example overwrites."""
    return Path(shutil.copytree(hf, tmp_path_factory.mktemp("victim") / "micro"))


@settings(max_examples=200)
@given(data=st.data())
def test_any_header_gives_a_checkpoint_or_the_error(data: st.DataObject, hf: Path, victim: Path) -> None:
    """Whatever bytes of the header of a real checkpoint change, opening it works or is CheckpointError in one line."""
    content = bytearray((hf / SINGLE).read_bytes())
    length = len(header_of(hf / SINGLE)) + 8
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, length - 1))
        content[position] = data.draw(st.sampled_from(b'0123456789[]{}",:BFU\x00\xff') | st.integers(0, 255))
    (victim / SINGLE).write_bytes(content)
    error = error_of(lambda: open_checkpoint(victim).close())
    assert error is None or str(error).isprintable()

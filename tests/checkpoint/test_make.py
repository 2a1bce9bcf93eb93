"""`shoal.cluster.checkpoint.make`; transformers loads what it writes."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shoal.cluster.checkpoint import make
from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.checkpoint.shards import ShardWriter
from shoal.kernels import mxfp4
from shoal.workers.checkpoint import CheckpointError, open_checkpoint
from tests.checkpoint.broken import MICRO


def test_transformers_loads_every_tensor(tmp_path: Path) -> None:
    """GptOssForCausalLM finds every weight of the tiny preset, equal to ours, and needs no other."""
    directory = make_checkpoint(tmp_path / "tiny", "tiny", seed=3)
    transformers: Any = importlib.import_module("transformers")  # its own types do not know these calls
    model, info = transformers.GptOssForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = model.state_dict()
    with open_checkpoint(directory) as checkpoint:
        for name in checkpoint.slices:
            if name.endswith("_scales"):
                continue
            expected = checkpoint.tensor(name)
            if name.endswith("_blocks"):
                scales = checkpoint.tensor(name.replace("_blocks", "_scales"))
                expected = mxfp4.dequantize(expected, scales, torch.float32).transpose(1, 2)
            theirs = state.pop(name.removesuffix("_blocks"))
            assert torch.equal(expected.float(), theirs), name
        assert not state
        assert list(checkpoint.config.eos_token_ids) == model.generation_config.eos_token_id
        assert checkpoint.config.eos_token_ids[0] == model.config.eos_token_id


def test_layout_of_openai(original: Path, hf: Path) -> None:
    """`original/` holds what OpenAI's own loader looks for; the tokenizer stays at the root."""
    assert {"original", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} == {
        path.name for path in original.iterdir()
    }
    assert {"config.json", "dtypes.json", "model.safetensors"} == {
        path.name for path in (original / "original").iterdir()
    }
    theirs, ours = load_file(original / "original" / "model.safetensors"), load_file(hf / "model.safetensors")
    layer = "model.layers.0."
    for part in ("weight", "bias"):
        fused = torch.cat([ours[f"{layer}self_attn.{letter}_proj.{part}"] for letter in "qkv"])
        assert torch.equal(fused, theirs[f"block.0.attn.qkv.{part}"])
    assert torch.equal(ours[f"{layer}mlp.experts.gate_up_proj_blocks"], theirs["block.0.mlp.mlp1_weight.blocks"])
    assert torch.equal(ours[f"{layer}mlp.router.bias"], theirs["block.0.mlp.gate.bias"])
    assert set(theirs) == set(json.loads((original / "original" / "dtypes.json").read_text()))


def test_threads_do_not_show(tmp_path: Path, hf: Path) -> None:
    """The bytes are the same whatever number of threads drew them."""
    make_checkpoint(tmp_path / "one", MICRO, seed=7, threads=1)
    for path in hf.iterdir():
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    """Progress grows to exactly the bytes of all tensors."""
    seen: list[tuple[int, int]] = []
    make_checkpoint(tmp_path / "made", MICRO, progress=lambda done, total: seen.append((done, total)))
    done = [item[0] for item in seen]
    assert done == sorted(set(done))
    with open_checkpoint(tmp_path / "made") as checkpoint:
        assert seen[-1] == (sum(part.nbytes for part in checkpoint.slices.values()),) * 2


def test_fills_an_empty_directory(tmp_path: Path) -> None:
    """An empty directory is a fine target; the result may be read by others."""
    (tmp_path / "empty").mkdir()
    made = make_checkpoint(tmp_path / "empty", MICRO)
    assert made.stat().st_mode & 0o777 == 0o755
    open_checkpoint(made).close()


@pytest.mark.parametrize("is_file", [True, False])
def test_never_overwrites(tmp_path: Path, is_file: bool) -> None:
    """An existing file or filled directory is refused and left as it was."""
    target = tmp_path / "taken"
    if is_file:
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "precious").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        make_checkpoint(target, MICRO)
    assert target.is_file() == is_file
    assert [target] == list(tmp_path.iterdir())


def test_asks_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset that does not fit is refused before anything is written, with both sizes."""
    usage = type("Usage", (), {"free": 60 * 10**9})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"disk too small: expected 65\d{9} bytes free, found 60000000000"):
        make_checkpoint(tmp_path / "new" / "large", "120b")
    assert not list(tmp_path.iterdir())


class _Interrupt(BaseException):
    """Stands for Ctrl-C."""


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _interrupt(*_: object) -> None:
    raise _Interrupt


@pytest.mark.parametrize(("fail", "raised"), [(_full, CheckpointError), (_interrupt, _Interrupt)])
def test_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None], raised: type[BaseException]
) -> None:
    """A full disk or an interrupt in the middle leaves neither the target nor the staging directory."""
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", fail)
        with pytest.raises(raised):
            make_checkpoint(tmp_path / "made", MICRO)
    assert not list(tmp_path.iterdir())
    with pytest.raises(_Interrupt):
        make_checkpoint(tmp_path / "made", MICRO, progress=_interrupt)
    assert not list(tmp_path.iterdir())


def test_memory_is_bounded() -> None:
    """However many pieces there are, only a few are begun and not yet written."""
    begun = 0

    def work(_: object) -> int:
        nonlocal begun
        begun += 1
        return 1

    with ThreadPoolExecutor(1) as pool:
        results = make._in_flight(pool, work, iter(range(10**9)), most=4)  # type: ignore[arg-type] # numbers stand for pieces
        assert [next(results) for _ in range(10)] == [1] * 10
        assert begun <= 14


def test_window_of_the_tiny_preset_is_short() -> None:
    """Tests pass the tiny model's sliding window within a short prompt."""
    assert PRESETS["tiny"].config().layer_windows == (32, None, 32, None)

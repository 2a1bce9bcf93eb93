"""The checks and timers of `tests/gpu` on tiny shapes: whoever has a GPU for ten minutes finds no slip in them.

Times mean nothing here; that a check holds does, as far as the interpreter goes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.kernels.attention import BlockShape
from tests.gpu import (
    attention_checks,
    attention_timing,
    checks,
    dense_checks,
    dense_timing,
    moe_checks,
    moe_peer,
    moe_timing,
    stopwatch,
)

CHECKS = (*moe_checks.ALL, *attention_checks.ALL, *dense_checks.ALL, *checks.ALL)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_of_the_gpu_script_holds_here(check: checks.Check) -> None:
    """In bf16, as a GPU serves it, at sizes that the interpreter gets through."""
    assert check(checks.Setting("cpu", False, torch.bfloat16)) >= 0


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and batches at which the interpreter times everything."""
    monkeypatch.setattr(stopwatch, "DEVICE", "cpu")
    for module, sizes in {
        dense_timing: {"HIDDEN": 64, "HEADS": 64, "QKV": 96, "VOCABULARY": 300, "BATCHES": (3,), "_CACHE": 1},
        moe_timing: {
            "MODELS": (("20b", 4, 2), ("120b", 5, 1)), "HIDDEN": 64, "EXPERT_BYTES": 1, "BATCHES": (4,), "WORKS": 2,
            "BASELINE_BATCHES": (4,),
        },
        moe_peer: {"MODELS": (("20b", 4),), "BATCHES": (4,), "WORKS": 2},
        attention_timing: {
            "HEADS": 2, "KV_HEADS": 1, "SHAPE": BlockShape(2, 1, 64, 1e-5, 0.125), "_BLOCKS": 40, "_LONGEST": 64,
            "_MOST_CALLS": 2,
            "DECODE": ((2, 40),), "PROMPTS": (20,), "_READ": 1,
        },
    }.items():  # fmt: skip
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


def told(rows: Iterator[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By case. Every row is a figure with its unit, or says why there is none."""
    found = {row["case"]: row for row in rows}
    for row in found.values():
        assert "skipped" in row or (row["unit"] and math.isfinite(row["value"]) and row["value"] >= 0)
    return found


@pytest.mark.usefixtures("tiny")
def test_experts_are_timed() -> None:
    """Time, order, bytes per second beside a copy, and the plain way."""
    found = told(moe_timing.rows(math.inf))

    cases = {"experts", "order", "packed bytes", "dequantise then matmul"}
    assert {
        "copy",
        "bf16 matmul of the vendor's library",
        *(f"{m} batch 4, {what}" for m in ("20b", "120b") for what in cases),
    } == set(found)


@pytest.mark.usefixtures("tiny")
def test_attention_is_timed() -> None:
    """Decoding beside a copy, prompts beside a product and the vendor's attention."""
    found = told(attention_timing.rows(math.inf))

    assert {"decode full batch 2 at 40, keys and values", "prompt sliding of 20"} < set(found)
    assert "ratio" in found["prompt full of 20, beside the vendor's"]


@pytest.mark.usefixtures("tiny")
def test_what_is_around_them_is_timed() -> None:
    """Projections, routers, unembedding, sampling and the sum with its norm, each beside torch's own."""
    found = told(dense_timing.rows(math.inf))

    for part in ("qkv", "out and residual", "norm and router of 128", "norm and unembedding", "a draw",
                 "sum, residual and norm"):  # fmt: skip
        assert "peer_value" in found[f"{part} batch 3"]


@pytest.mark.usefixtures("tiny")
def test_time_that_is_over_leaves_a_line() -> None:
    """Nothing further is begun, and the record says what is missing."""
    for rows in (moe_timing.rows, attention_timing.rows, dense_timing.rows, dense_timing.tiles):
        assert any("skipped" in row for row in rows(0.0))


def test_a_peer_that_is_not_there_is_left_out_by_a_line(tmp_path: Path) -> None:
    """With the reason."""
    (row,) = moe_peer.rows(math.inf, tmp_path)

    assert row["skipped"].startswith("left out: ModuleNotFoundError")


FAKE = {
    "__init__": "",
    "swiglu": "swiglu_fn = None",
    "tensor_details/__init__": "",
    "tensor_details/layout": """
def make_default_matmul_mxfp4_w_layout(mx_axis): return mx_axis
def make_default_matmul_mxfp4_w_scale_layout(mx_axis, num_warps): return mx_axis
""",
    "tensor": """
FP4 = "fp4"
def wrap_torch_tensor(data, dtype=None): return data
def convert_layout(data, layout): return data
def make_ragged_tensor_metadata(sizes, rows): return sizes
""",
    "matmul": """
from dataclasses import dataclass
from typing import Any
import torch
from tests.kernels import reference
from shoal.kernels.mxfp4 import ExpertWeights

OFF = 0.0

@dataclass
class PrecisionConfig:
    b_mx_scale: Any
    b_microblock_size: Any = None

class FnSpecs:
    def __init__(self, name, function, arguments, reduction_n): pass

class FusedActivation:
    def __init__(self, specs, arguments): self.alpha, self.limit = arguments

def matmul(a, b, bias, a_ragged_metadata, precision_config, gather_indx=None, scatter_indx=None, fused_activation=None):
    offsets = torch.cat([a_ragged_metadata.new_zeros(1), a_ragged_metadata.cumsum(0)])
    experts, bytes, rows = b.shape
    blocks = b.transpose(1, 2).reshape(experts, rows, bytes // 16, 16)
    w = ExpertWeights(blocks, precision_config.b_mx_scale.transpose(1, 2), bias)
    if fused_activation is not None:
        f = fused_activation
        return reference.gate_up(a, gather_indx, offsets, w, limit=f.limit, alpha=f.alpha).bfloat16()
    y = reference.expert_linear(a, offsets, w).bfloat16()
    out = torch.empty_like(y)
    out[scatter_indx.long()] = y
    return out + OFF
""",
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("off", [0.0, 9.0])
def test_a_peer_is_compared_before_it_is_timed(off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same names, computed by the second oracle: figures side by side, or a line where it is off."""
    for name, text in FAKE.items():
        file = tmp_path / "triton_kernels" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("OFF = 0.0", f"OFF = {off}"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        found = told(moe_peer.rows(math.inf, tmp_path))
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "triton_kernels"]:
            del sys.modules[name]

    if off:
        assert all("its results differ" in row["skipped"] for row in found.values())
    else:
        row = found["20b batch 4, beside triton_kernels"]
        assert row["difference"] < moe_peer.CLOSE
        assert row["peer_value"] > 0

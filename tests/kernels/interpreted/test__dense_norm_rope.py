"""The small Triton kernels in the interpreter, against their twins: `_dense`, `_norm`, `_rope`."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _dense, _norm, _rope
from shoal.kernels.dense import linear_torch
from shoal.kernels.norm import rms_norm_torch
from shoal.kernels.rope import apply_rope_torch_, rope_tables
from tests.kernels.cases import Cases
from tests.kernels.interpreted.closeness import DTYPES, assert_close


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k", "bias"), [(0, 5, 32, True), (1, 75, 96, True), (70, 130, 200, False)])
def test_linear_equals_its_twin(rows: int, n: int, k: int, bias: bool, dtype: torch.dtype) -> None:
    """Full and ragged tiles, with and without bias."""
    x = Cases(seed=rows, dtype=dtype).normal(rows, k)
    weight, b = Cases(seed=1).normal(n, k).bfloat16(), Cases(seed=2).normal(n).bfloat16() if bias else None

    assert_close(linear_torch(x, weight, b), _dense.linear(x, weight, b))
    assert_close(linear_torch(x, weight, b, torch.float32), _dense.linear(x, weight, b, torch.float32))


def test_a_row_of_linear_never_depends_on_its_batch() -> None:
    """The last of 70 rows alone: the same bits."""
    x, weight = Cases(seed=3).normal(70, 200), Cases(seed=4).normal(20, 200).bfloat16()

    assert torch.equal(_dense.linear(x, weight, None)[69], _dense.linear(x[69:], weight, None)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [33, 256])
def test_rms_norm_equals_its_twin(width: int, dtype: torch.dtype) -> None:
    """Widths that fill a power of two and that do not."""
    x, weight = Cases(seed=5, dtype=dtype).normal(3, width), Cases(seed=6).normal(width).bfloat16()

    assert_close(rms_norm_torch(x, weight, 1e-5), _norm.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 24])
def test_rope_equals_its_twin(head_dim: int, dtype: torch.dtype) -> None:
    """In place, queries and keys, heads that are no power of two."""
    cases = Cases(seed=7, dtype=dtype)
    positions = torch.tensor([0, 1, 7, 100, 5])
    cos, sin = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, head_dim, 128, "cpu")
    tensors = [cases.normal(5, heads, head_dim) for heads in (6, 2, 6, 2)]

    _rope.apply_rope_(tensors[0], tensors[1], positions, cos, sin)
    apply_rope_torch_(tensors[2], tensors[3], positions, cos, sin)

    assert_close(tensors[2], tensors[0])
    assert_close(tensors[3], tensors[1])

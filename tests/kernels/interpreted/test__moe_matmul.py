"""The Triton grouped matmuls in the interpreter, against their twins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shoal.kernels import _moe_matmul
from shoal.kernels.moe_matmul import down_torch, gate_up_torch
from tests.kernels.cases import Cases
from tests.kernels.interpreted.closeness import DTYPES, assert_close

LIMIT, ALPHA = 7.0, 1.702


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("counts", "width", "rows"),
    [([33, 0, 7], 96, 140), ([1], 32, 2), ([2, 1, 1], 160, 64), ([0, 65], 64, 258)],
)
def test_gate_up_equals_its_twin(counts: list[int], width: int, rows: int, dtype: torch.dtype) -> None:
    """Full and ragged tiles in every direction, idle experts, one expert alone."""
    cases = Cases(seed=len(counts), dtype=dtype)
    x, w = cases.normal(20, width), cases.experts(len(counts), rows, width)
    chosen, offsets = cases.assignment(20, counts)

    expected = gate_up_torch(x, chosen, offsets, w, limit=LIMIT, alpha=ALPHA)

    assert_close(expected, _moe_matmul.gate_up(x, chosen, offsets, w, limit=LIMIT, alpha=ALPHA))


@pytest.mark.parametrize("dtype", DTYPES)
def test_down_equals_its_twin(dtype: torch.dtype) -> None:
    """No gather, no activation, the bias once."""
    cases = Cases(seed=7, dtype=dtype)
    h, w = cases.normal(40, 96), cases.experts(3, 75, 96)
    _, offsets = cases.assignment(1, [33, 0, 7])

    assert_close(down_torch(h, offsets, w), _moe_matmul.down(h, offsets, w))


def test_every_code_is_decoded_at_the_smallest_and_at_large_scales() -> None:
    """An identity for activations lays the decoded weights open: exact, subnormals included."""
    cases = Cases(seed=8)
    w = cases.experts(1, 16, 32)
    codes = torch.arange(16, dtype=torch.uint8)
    w.blocks[0, :, 0, :] = (codes | codes.flip(0) << 4)[None]
    w.scales[0, :, 0] = torch.tensor([0, 1, 2, 3, 64, 126, 127, 128, 129, 200, 250, 251, 252, 0, 127, 1])
    bare = replace(w, bias=torch.zeros_like(w.bias))
    offsets = torch.tensor([0, 32], dtype=torch.int32)

    found = _moe_matmul.down(torch.eye(32), offsets, bare)

    assert torch.equal(down_torch(torch.eye(32), offsets, bare), found)


def test_a_row_never_depends_on_its_batch() -> None:
    """The last of 34 rows of an expert, alone in a launch of its own: the same bits."""
    cases = Cases(seed=9)
    x, w = cases.normal(34, 96), cases.experts(2, 64, 96)
    rows = torch.arange(34, dtype=torch.int32)
    many = _moe_matmul.gate_up(x, rows, torch.tensor([0, 0, 34], dtype=torch.int32), w, limit=LIMIT, alpha=ALPHA)

    one = _moe_matmul.gate_up(x, rows[33:], torch.tensor([0, 0, 1], dtype=torch.int32), w, limit=LIMIT, alpha=ALPHA)

    assert torch.equal(many[33], one[0])


def test_no_rows_launch_nothing() -> None:
    """An idle rank takes part with zero tokens."""
    cases = Cases()

    out = _moe_matmul.down(cases.normal(0, 64), torch.zeros(3, dtype=torch.int32), cases.experts(2, 20, 64))

    assert out.shape == (0, 20)

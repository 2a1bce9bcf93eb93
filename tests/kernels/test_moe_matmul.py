"""The twins of the grouped matmuls, against float64 and for exactness."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.moe_matmul import down_torch, gate_up_torch
from tests.kernels import reference
from tests.kernels.cases import Cases

LIMIT, ALPHA = 7.0, 1.702


def test_gate_up_is_the_published_mathematics() -> None:
    """Gather, interleaved rows, bias, clamps and SwiGLU as in float64, with an expert nobody chose."""
    cases = Cases(seed=1)
    x, w = cases.normal(20, 96), cases.experts(4, 140, 96)
    rows, offsets = cases.assignment(20, [5, 0, 33, 1])

    h = gate_up_torch(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)

    torch.testing.assert_close(h.double(), reference.gate_up(x, rows, offsets, w, LIMIT, ALPHA), rtol=1e-5, atol=1e-5)


def test_clamps_act_where_they_should() -> None:
    """With inputs a hundred times too large: gate from above only, up on both sides."""
    cases = Cases(seed=2)
    x, w = cases.normal(8, 64) * 100, cases.experts(2, 64, 64)
    rows, offsets = cases.assignment(8, [4, 9])
    z = reference.expert_linear(x[rows.long()], offsets, w)
    assert min(z[:, 0::2].max(), z[:, 1::2].max(), -z[:, 1::2].min()) > LIMIT, "the case must reach every clamp"
    expected = reference.gate_up(x, rows, offsets, w, LIMIT, ALPHA)

    torch.testing.assert_close(
        expected, gate_up_torch(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA).double(), rtol=1e-4, atol=1e-3
    )


def test_down_adds_the_bias_once_and_no_weight() -> None:
    """One row per (token, expert), as float64 has it."""
    cases = Cases(seed=3)
    h, w = cases.normal(13, 64), cases.experts(3, 75, 64)
    _, offsets = cases.assignment(1, [6, 7, 0])

    torch.testing.assert_close(
        reference.expert_linear(h, offsets, w), down_torch(h, offsets, w).double(), rtol=1e-5, atol=1e-5
    )


def test_bf16_rounds_once_at_the_end() -> None:
    """The twin of bf16 inputs is the fp32 result of the same numbers, rounded."""
    cases = Cases(seed=4, dtype=torch.bfloat16)
    x, w = cases.normal(6, 64), cases.experts(2, 32, 64)
    rows, offsets = cases.assignment(6, [3, 8])

    h = gate_up_torch(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)

    assert torch.equal(gate_up_torch(x.float(), rows, offsets, w, limit=LIMIT, alpha=ALPHA).bfloat16(), h)


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_a_row_depends_on_its_token_and_its_expert_alone(counts: list[int], seed: int) -> None:
    """Each row of a batch, computed alone by a worker that holds only its expert, has the same bits."""
    cases = Cases(seed=seed)
    x, w = cases.normal(5, 64), cases.experts(len(counts), 36, 64)
    rows, offsets = cases.assignment(5, counts)
    h = gate_up_torch(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)
    single = torch.tensor([0, 1], dtype=torch.int32)

    for row in range(sum(counts)):
        expert = int((offsets[1:] <= row).sum())
        held = replace(w, blocks=w.blocks[expert][None], scales=w.scales[expert][None], bias=w.bias[expert][None])
        alone = gate_up_torch(x[rows[row]][None], single[:1], single, held, limit=LIMIT, alpha=ALPHA)
        assert torch.equal(h[row], alone[0])


@pytest.mark.parametrize("counts", [[0, 0], [0]])
def test_no_rows_is_a_batch_too(counts: list[int]) -> None:
    """An idle rank takes part with zero tokens."""
    cases = Cases()
    w = cases.experts(len(counts), 36, 64)
    rows, offsets = cases.assignment(1, counts)

    h = gate_up_torch(cases.normal(0, 64), rows, offsets, w, limit=LIMIT, alpha=ALPHA)

    assert h.shape == (0, 18)

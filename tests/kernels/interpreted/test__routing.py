"""The Triton routing kernels in the interpreter, against their twins."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _norm, _routing
from shoal.kernels.routing import combine_normed_torch, combine_torch, route_torch
from tests.kernels.cases import Cases
from tests.kernels.interpreted.closeness import DTYPES, assert_close


@pytest.mark.parametrize(("experts", "k"), [(8, 4), (33, 4), (5, 3), (4, 1)])
def test_route_equals_its_twin(experts: int, k: int) -> None:
    """Ties go to the lower id, also between -0 and +0; negative, huge and infinitely small logits in order."""
    logits = Cases(seed=experts).normal(6, experts)
    logits[1, 1:3] = 9.0
    logits[2] = torch.where(torch.arange(experts) % 2 == 0, -0.0, 0.0)
    logits[3] *= 1e30
    logits[4, 0] = -torch.inf
    expected_ids, expected_weights = route_torch(logits, k)

    ids, weights = _routing.route(logits, k)

    assert torch.equal(expected_ids, ids)
    assert_close(expected_weights, weights)


def test_rows_that_fill_a_step_up_choose_nobody() -> None:
    """From the row that a tensor names on; the others choose as ever."""
    logits = Cases(seed=9).normal(5, 8)
    ids, weights = _routing.route(logits, 4)

    for live in (0, 3, 5):
        some_ids, some_weights = _routing.route(logits, 4, torch.tensor([live]))
        assert torch.equal(route_torch(logits, 4, torch.tensor([live]))[0], some_ids)
        assert torch.equal(ids[:live], some_ids[:live])
        assert torch.equal(weights[:live], some_weights[:live])
        assert (some_ids[live:] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_equals_its_twin(dtype: torch.dtype) -> None:
    """In fp32 bit for bit: the same products in the same order, none fused."""
    rows, weights = Cases(seed=2, dtype=dtype).normal(5, 4, 1030), Cases(seed=3).normal(5, 4)
    expected = combine_torch(rows, weights)

    found = _routing.combine(rows, weights)

    if dtype == torch.float32:
        assert torch.equal(expected, found)
    assert_close(expected, found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_is_added_before_the_one_rounding(dtype: torch.dtype) -> None:
    """In fp32 the bits of adding it afterwards."""
    rows, weights, x = (
        Cases(seed=2, dtype=dtype).normal(5, 4, 1030),
        Cases(3).normal(5, 4),
        Cases(4, dtype).normal(5, 1030),
    )

    found = _routing.combine(rows, weights, x)

    assert_close(combine_torch(rows, weights, x), found)
    if dtype == torch.float32:
        assert torch.equal(x + combine_torch(rows, weights), found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), [(0, 32), (1, 1), (3, 33), (5, 1030)])
def test_the_norm_behind_a_layer_has_the_bits_of_its_own_kernel(tokens: int, width: int, dtype: torch.dtype) -> None:
    """Sum and norm in one launch: the sum of `combine`, and the norm of what was stored, with a residual or without."""
    rows, weights = Cases(seed=2, dtype=dtype).normal(tokens, 4, width), Cases(3).normal(tokens, 4)
    x, norm = Cases(4, dtype).normal(tokens, width), Cases(5).normal(width).bfloat16()

    for residual in (None, x):
        total, normed = _routing.combine_normed(rows, weights, residual, norm, 1e-5)
        assert torch.equal(_routing.combine(rows, weights, residual), total)
        assert torch.equal(_norm.rms_norm(total, norm, 1e-5), normed)
        if dtype == torch.float32:  # what bf16 rounds twice may be two places off
            twins = combine_normed_torch(rows, weights, residual, norm, 1e-5)
            assert_close(twins[0], total)
            assert_close(twins[1], normed)

"""The Triton routing kernels in the interpreter, against their twins."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _routing
from shoal.kernels.routing import combine_torch, route_torch
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

"""The Triton routing kernels in the interpreter, against their twins."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _routing
from shoal.kernels.routing import combine_torch, route_torch, sort_by_expert_torch
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


@pytest.mark.parametrize("rows", [0, 1, 127, 300])
@pytest.mark.parametrize("known", [True, False])
def test_sort_equals_its_twin(rows: int, known: bool) -> None:
    """Over several blocks, with strangers among the rows and an expert without any."""
    ids = torch.randint(-2, 6, (rows,), dtype=torch.int32, generator=torch.Generator().manual_seed(rows))
    ids[ids == 4] = 3
    expected_order, expected_offsets = sort_by_expert_torch(ids, 7)

    order, offsets = _routing.sort_by_expert(ids, 7, count=int((ids >= 0).sum()) if known else None)

    assert torch.equal(expected_order, order)
    assert torch.equal(expected_offsets, offsets)


@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_equals_its_twin(dtype: torch.dtype) -> None:
    """In fp32 bit for bit: the same products in the same order, none fused."""
    rows, weights = Cases(seed=2, dtype=dtype).normal(5, 4, 1030), Cases(seed=3).normal(5, 4)
    expected = combine_torch(rows, weights)

    found = _routing.combine(rows, weights)

    if dtype == torch.float32:
        assert torch.equal(expected, found)
    assert_close(expected, found)

"""The twins of routing: top-k with its ties, the stable sort, the ordered sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.norm import rms_norm
from shoal.kernels.routing import (
    combine,
    combine_normed,
    combine_normed_torch,
    combine_torch,
    route,
    route_torch,
    sort_by_expert_torch,
)
from tests.kernels import reference
from tests.kernels.cases import Cases


def test_the_largest_are_chosen_in_falling_order_with_their_softmax() -> None:
    """Against a sorted Python list and a float64 softmax over the chosen alone."""
    logits = Cases(seed=1).normal(50, 32)

    ids, weights = route_torch(logits, 4)
    expected_ids, expected_weights = reference.route(logits, 4)

    assert expected_ids == ids.tolist()
    assert ids.dtype == torch.int32
    torch.testing.assert_close(expected_weights, weights.double(), rtol=1e-6, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0]), min_size=4, max_size=9))
def test_equal_logits_go_to_the_lower_expert(row: list[float]) -> None:
    """Ties, also between -0 and +0, are decided by the expert's number."""
    ids, _ = route_torch(torch.tensor([row]), 4)

    assert reference.route(torch.tensor([row]), 4)[0] == ids.tolist()


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_a_token_is_routed_the_same_in_every_batch(tokens: int, seed: int) -> None:
    """Ids and the bits of the weights."""
    logits = Cases(seed=seed).normal(tokens, 8)
    ids, weights = route_torch(logits, 4)

    for t in range(tokens):
        alone_ids, alone_weights = route_torch(logits[t : t + 1], 4)
        assert torch.equal(ids[t], alone_ids[0])
        assert torch.equal(weights[t], alone_weights[0])


def test_rows_from_the_last_one_alive_on_choose_nobody() -> None:
    """On the backend of this machine and in the twin; what the others choose stays."""
    logits = Cases(seed=4).normal(5, 8)

    for choose in (route, route_torch):
        ids, weights = choose(logits, 4)
        for live in (0, 2, 5):
            some, same = choose(logits, 4, torch.tensor([live]))
            assert torch.equal(ids[:live], some[:live])
            assert (some[live:] == -1).all()
            assert torch.equal(weights, same)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-2, 5), max_size=40))
def test_rows_are_sorted_stably_and_strangers_left_out(ids: list[int]) -> None:
    """Against Python's own stable sort; negative ids belong to other workers."""
    order, offsets = sort_by_expert_torch(torch.tensor(ids, dtype=torch.int32), 6)

    assert sorted((i for i, e in enumerate(ids) if e >= 0), key=lambda i: ids[i]) == order.tolist()
    assert [sum(0 <= e < bound for e in ids) for bound in range(7)] == offsets.tolist()
    assert order.dtype == offsets.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expert_rows_are_added_in_top_k_order_and_rounded_once(dtype: torch.dtype) -> None:
    """((w0 r0 + w1 r1) + w2 r2) + w3 r3 in fp32, then the cast."""
    rows, weights = Cases(seed=2, dtype=dtype).normal(5, 4, 33), Cases(seed=3).normal(5, 4)
    r, w = rows.float(), weights[..., None]

    expected = ((r[:, 0] * w[:, 0] + r[:, 1] * w[:, 1]) + r[:, 2] * w[:, 2]) + r[:, 3] * w[:, 3]

    assert torch.equal(expected.to(dtype), combine_torch(rows, weights))


def test_the_sum_and_its_norm_are_the_two_launchers() -> None:
    """On the backend of this machine and in the twin."""
    rows, weights = Cases(seed=2).normal(5, 4, 33), Cases(seed=3).normal(5, 4)
    x, norm = Cases(seed=4).normal(5, 33), Cases(seed=5).normal(33).bfloat16()

    total, normed = combine_normed(rows, weights, x, norm, 1e-5)
    twin_total, twin_normed = combine_normed_torch(rows, weights, x, norm, 1e-5)

    assert torch.equal(combine(rows, weights, x), total)
    assert torch.equal(rms_norm(total, norm, 1e-5), normed)
    assert torch.equal(combine_torch(rows, weights, x), twin_total)
    torch.testing.assert_close(twin_normed, normed)

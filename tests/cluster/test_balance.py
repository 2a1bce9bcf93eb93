"""Experts spread by load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cluster.balance import Loads, balanced_placement, imbalance, moves
from shoal.cluster.placement import even_placement, moved_placement
from shoal.workers.experts.placement import Placement


def zipf(layers: int, experts: int, seed: int, exponent: float = 1.0) -> Loads:
    """A few experts have most of the load, others in each layer."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    ranked = 1000.0 / np.arange(1, experts + 1) ** exponent
    return np.stack([rng.permutation(ranked) for _ in range(layers)])


def require_valid(placement: Placement, ep_size: int, slots: int, experts: int) -> None:
    """Every expert is held, and no rank holds more than it has slots, or one expert twice."""
    for layer, holders in enumerate(placement.holders):
        assert len(holders) == experts
        for rank in range(ep_size):
            assert len(placement.experts_of(layer, rank)) <= slots


shapes = st.tuples(st.integers(1, 8), st.integers(1, 24), st.integers(0, 3)).filter(lambda s: s[0] <= s[1])


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_any_loads_give_a_valid_placement(shape: tuple[int, int, int], seed: int) -> None:
    """Made anew or mended: nothing is lost, nothing overflows, and it is not worse than an even spread."""
    ep_size, experts, copies = shape
    slots = -(-experts // ep_size) + copies
    loads = zipf(2, experts, seed)
    fresh = balanced_placement(loads, ep_size, slots)
    require_valid(fresh, ep_size, slots, experts)
    later = zipf(2, experts, seed + 1)
    mended = balanced_placement(later, ep_size, slots, fresh)
    require_valid(mended, ep_size, slots, experts)
    assert imbalance(fresh, loads) <= imbalance(even_placement(2, experts, ep_size), loads) + 1e-9


def test_copies_level_a_skewed_load() -> None:
    """36 layers of 128 experts on 8 ranks, Zipf: one expert alone is more than a rank's share, copies level it."""
    loads = zipf(36, 128, seed=1)
    assert imbalance(even_placement(36, 128, 8), loads) > 1.5
    assert imbalance(balanced_placement(loads, 8, 18), loads) < 1.03


def test_a_placement_is_mended_with_few_moves() -> None:
    """Loads that changed a little move a fraction of what a placement made anew would, and balance as well."""
    loads = zipf(12, 64, seed=2)
    before = balanced_placement(loads, 8, 10)
    noise = np.random.Generator(np.random.Philox(key=9)).normal(1.0, 0.1, loads.shape)
    later = loads * np.abs(noise)
    mended, anew = balanced_placement(later, 8, 10, before), balanced_placement(later, 8, 10)
    assert imbalance(mended, later) <= imbalance(anew, later) + 0.05
    assert moves(before, mended) * 3 < moves(before, anew)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(6, 40), st.data())
def test_ranks_that_come_and_go_move_as_few_experts_as_they_must(old: int, experts: int, data: st.DataObject) -> None:
    """Whoever stays keeps what an even spread lets it keep; shares differ by at most one."""
    before = even_placement(2, experts, old)
    new = data.draw(st.integers(1, 6))
    stay = data.draw(st.permutations(range(old)))[: data.draw(st.integers(0, min(old, new)))]
    came_from = [*stay, *([None] * (new - len(stay)))]
    after = moved_placement(before, came_from)
    for layer in range(2):
        sizes = [len(after.experts_of(layer, rank)) for rank in range(new)]
        assert sum(sizes) == experts
        assert max(sizes) - min(sizes) <= 1
        for rank, source in enumerate(came_from):
            if source is not None:
                had, has = set(before.experts_of(layer, source)), set(after.experts_of(layer, rank))
                assert len(had & has) >= min(len(had), experts // new), "it gave away what it could have kept"


@pytest.mark.parametrize("holders", [(0,), (0, 2), (1, 3), (0, 1, 2, 3), (2, 3)])
def test_copies_take_turns(holders: tuple[int, ...]) -> None:
    """A rank with a copy uses its own; the others spread over all copies as evenly as can be."""
    placement = Placement(4, ((holders,),))
    served = [placement.serving_rank(0, 0, source) for source in range(4)]
    assert all(served[rank] == rank for rank in holders)
    counts = [served.count(rank) for rank in holders]
    assert max(counts) - min(counts) <= 1

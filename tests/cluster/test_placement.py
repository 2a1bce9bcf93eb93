"""Which rank holds which expert."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.placement import even_placement

shapes = st.integers(1, 130).flatmap(lambda experts: st.tuples(st.just(experts), st.integers(1, experts)))


@given(shapes, st.integers(1, 40))
def test_every_expert_has_exactly_one_rank(shape: tuple[int, int], layers: int) -> None:
    """Over all ranks, the experts of a layer are 0..E-1, each once, in the order of the ranks."""
    experts, ranks = shape
    placement = even_placement(layers, experts, ranks)
    for layer in (0, layers - 1):
        held = [expert for rank in range(ranks) for expert in placement.experts_of(layer, rank)]
        assert list(range(experts)) == held


@given(shapes)
def test_shares_differ_by_at_most_one(shape: tuple[int, int]) -> None:
    """No rank holds two experts more than another, and the larger shares come first."""
    experts, ranks = shape
    sizes = [len(even_placement(1, experts, ranks).experts_of(0, rank)) for rank in range(ranks)]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@given(shapes, st.integers(2, 5))
def test_all_layers_are_placed_alike(shape: tuple[int, int], layers: int) -> None:
    """A rank holds the same experts in every layer."""
    placement = even_placement(layers, *shape)
    assert len(set(placement.holders)) == 1
    assert layers == placement.num_layers

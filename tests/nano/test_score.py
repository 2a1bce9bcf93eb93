"""Shares and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.nano.score import Score

Z = 1.959964


@given(st.integers(1, 1000).flatmap(lambda asked: st.tuples(st.integers(0, asked), st.just(asked))))
def test_bounds_solve_wilsons_equation(counts: tuple[int, int]) -> None:
    """(share - p)^2 = z^2 p (1 - p) / n at both ends, and the share lies between them."""
    score = Score(*counts)
    for bound in score.bounds:
        assert (score.share - bound) ** 2 == pytest.approx(Z**2 * bound * (1 - bound) / score.asked, abs=1e-9)
    low, high = score.bounds
    assert low - 1e-9 <= score.share <= high + 1e-9


def test_scores_add() -> None:
    """Right with right, asked with asked."""
    assert Score(1, 2) + Score(3, 4) == Score(4, 6)

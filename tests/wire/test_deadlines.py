"""Deadlines of calls."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from shoal.wire.deadlines import Deadline, deadline_of


@dataclass
class FakeContext:
    """A call with so many seconds left."""

    left: float | None

    def time_remaining(self) -> float | None:
        """As gRPC's context."""
        return self.left


@pytest.mark.parametrize(("left", "expected"), [(None, 60.0), (5.0, 5.0), (100.0, 60.0), (-1.0, 0.0)])
def test_a_call_ends_at_its_own_deadline_or_at_the_longest(left: float | None, expected: float) -> None:
    """Without a deadline, or with a later one, the server's limit holds; the past is now."""
    assert deadline_of(FakeContext(left), longest=60.0, now=1000.0) == Deadline(expected, 1000.0 + expected)

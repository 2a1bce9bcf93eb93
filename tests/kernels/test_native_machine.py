"""What the machine can do at best, as the library measures it."""

from __future__ import annotations

import pytest

from shoal.kernels import native
from shoal.kernels.native import machine

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.reason()}")


def test_reading_is_measured_over_the_size_asked_for() -> None:
    """Whole MiB, at least 64, and at a rate that some machine could have."""
    rate = machine.read_rate(80 << 20)

    assert machine._buffer(80).numel() * 4 == 80 << 20
    assert 1e7 < rate < 1e13


def test_arithmetic_is_measured_in_operations_not_in_instructions() -> None:
    """Two per lane of a multiply-add: more than a scalar unit could do, less than any machine can."""
    assert 1e7 < machine.fma_rate(rounds=2000, tasks=2) < 1e15

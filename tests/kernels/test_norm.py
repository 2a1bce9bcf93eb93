"""The twin of RMS normalisation."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.norm import rms_norm_torch
from tests.kernels import reference
from tests.kernels.cases import Cases


@pytest.mark.parametrize("width", [1, 33, 256, 2880])
def test_rows_are_divided_by_their_root_mean_square(width: int) -> None:
    """Against float64, with rows of very different size and one of zeros."""
    x = Cases(seed=1).normal(4, width) * torch.tensor([[1.0], [1e-6], [1e6], [0.0]])
    weight = Cases(seed=2).normal(width).bfloat16()

    y = rms_norm_torch(x, weight, 1e-5)

    torch.testing.assert_close(y.double(), reference.rms_norm(x, weight, 1e-5), rtol=1e-6, atol=1e-6)


def test_the_weight_is_applied_before_the_rounding() -> None:
    """bf16 in, bf16 out, one rounding of the fp32 result in between."""
    x = Cases(seed=3, dtype=torch.bfloat16).normal(5, 64)
    weight = Cases(seed=4).normal(64)

    assert torch.equal(rms_norm_torch(x.float(), weight, 1e-5).bfloat16(), rms_norm_torch(x, weight, 1e-5))


def test_a_row_never_depends_on_its_batch() -> None:
    """Alone or among others, the same bits."""
    x, weight = Cases(seed=5).normal(7, 333), Cases(seed=6).normal(333)
    y = rms_norm_torch(x, weight, 1e-5)

    for row in range(7):
        assert torch.equal(y[row], rms_norm_torch(x[row : row + 1], weight, 1e-5)[0])

"""The twin of the dense layers; that its rows never depend on their batch is shown in test_exact.py."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.dense import linear_torch
from tests.kernels import reference
from tests.kernels.cases import Cases


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_is_the_product_plus_the_bias(rows: int, with_bias: bool) -> None:
    """Against float64, for no rows too."""
    x, weight = Cases(seed=1).normal(rows, 96), Cases(seed=2).normal(75, 96).bfloat16()
    bias = Cases(seed=3).normal(75).bfloat16() if with_bias else None

    y = linear_torch(x, weight, bias)

    torch.testing.assert_close(y.double(), reference.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_the_result_is_rounded_once_to_the_dtype_asked_for() -> None:
    """bf16 in: bf16 out by default, the unrounded sums as fp32 on request."""
    cases = Cases(seed=4, dtype=torch.bfloat16)
    x, weight, bias = cases.normal(3, 64), cases.normal(20, 64), cases.normal(20)

    wide = linear_torch(x, weight, bias, torch.float32)

    assert torch.equal(linear_torch(x.float(), weight, bias), wide)
    assert torch.equal(wide.bfloat16(), linear_torch(x, weight, bias))

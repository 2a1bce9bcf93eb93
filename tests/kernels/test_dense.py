"""The twin of the dense layers; that its rows never depend on their batch is shown in test_exact.py."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import dense, native, target
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_residual_is_added_to_the_sums_before_their_rounding(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rounding, of sum + bias + residual; the residual itself is left alone."""
    if backend == "native" and (dtype != torch.float32 or not native.available()):
        pytest.skip("native kernels read fp32, where they could be built")
    monkeypatch.setenv(target.OVERRIDE, backend)
    cases = Cases(seed=5, dtype=dtype)
    x, weight, bias = cases.normal(3, 64), Cases(seed=6).normal(20, 64).bfloat16(), Cases(seed=7).normal(20).bfloat16()
    residual = Cases(seed=8, dtype=dtype).normal(3, 20)
    kept = residual.clone()

    found = dense.linear(x, weight, bias, residual=residual)

    wide = dense.linear(x, weight, bias, torch.float32)
    assert torch.equal((wide + residual.float()).to(dtype), found)
    assert torch.equal(kept, residual)

"""The linear layers outside the experts: attention projections, router, unembedding."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels import exact, native
from shoal.kernels.native import PackedLinear
from shoal.kernels.target import backend_for

Weight = Tensor | PackedLinear
"""bf16 [N,K] as published, or what `prepare` made of it."""


def prepare(weight: Tensor) -> Weight:
    """The weight as its backend reads it fastest: packed on a CPU with native kernels, else unchanged."""
    return native.pack_linear(weight) if backend_for(weight) == "native" else weight


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    out_dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [T,K] @ weight [N,K].T + bias [N] + residual [T,N] -> [T,N] in `out_dtype` (x's dtype if None).

    Weight and bias are bf16 as published, sums are fp32 in an order fixed by K: a row never depends on its batch. Bias
    and residual are added to the fp32 sum, in this order, before its one rounding.
    """
    assert x.shape[1] == weight.shape[1], f"x has {x.shape[1]} features, the weight reads {weight.shape[1]}"
    assert residual is None or residual.shape == (x.shape[0], weight.shape[0]), "the residual has the result's shape"
    match backend_for(x):
        case "native" if residual is not None:
            wide = native.linear(x, weight, bias, torch.float32)
            return wide.add_(residual).to(out_dtype or x.dtype)
        case "native":
            return native.linear(x, weight, bias, out_dtype)
        case backend if isinstance(weight, PackedLinear):
            raise AssertionError(f"a weight packed for native kernels reached {backend}")
        case "triton":
            from shoal.kernels import _dense

            return _dense.linear(x, weight, bias, out_dtype, residual)
        case "torch":
            return linear_torch(x, weight, bias, out_dtype, residual)


def linear_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The twin of `linear`."""
    y = exact.matmul_t(x, weight)
    if bias is not None:
        y += bias.float()
    if residual is not None:
        y += residual.float()
    return y.to(out_dtype or x.dtype)

"""A norm and the linear layer that reads it: the router's half of a layer, and the unembedding."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels import native
from shoal.kernels.dense import Weight, linear
from shoal.kernels.norm import rms_norm
from shoal.kernels.target import backend_for


def norm_linear(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Weight,
    bias: Tensor | None,
    out_dtype: torch.dtype = torch.float32,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [T,H], norm [H], weight [N,H], bias [N] or None -> (rms_norm(x) [T,H] in x's dtype, [T,N] in `out_dtype`).

    Of x only `rows` i64 [L], in their order, if given: then both results have L rows. The product reads normed rows as
    they were rounded.
    """
    match backend_for(x):
        case "native" if out_dtype == torch.float32:
            return native.norm_linear(x if rows is None else x[rows], norm, eps, weight, bias)
        case "triton" if isinstance(weight, Tensor):
            from shoal.kernels import _norm_linear

            return _norm_linear.norm_linear(x, norm, eps, weight, bias, out_dtype, rows)
        case _:
            return norm_linear_torch(x, norm, eps, weight, bias, out_dtype, rows)


def norm_linear_torch(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Weight,
    bias: Tensor | None,
    out_dtype: torch.dtype = torch.float32,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The launchers, one by one, each on the backend of `x`."""
    normed = rms_norm(x, norm, eps, rows)
    return normed, linear(normed, weight, bias, out_dtype)

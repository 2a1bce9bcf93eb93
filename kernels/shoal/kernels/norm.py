"""Root-mean-square normalisation: y = x / sqrt(mean(x^2) + eps) * weight, fp32 inside."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels import exact, native
from shoal.kernels.target import backend_for


def rms_norm(x: Tensor, weight: Tensor, eps: float, rows: Tensor | None = None) -> Tensor:
    """Normalise each row of x [T,H], or those that rows i64 [L] names, in its order: -> [T,H] or [L,H].

    weight [H] is applied in fp32 before the one rounding to x's dtype.
    """
    assert weight.shape == x.shape[1:], f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
    match backend_for(x):
        case "native":
            return native.rms_norm(x if rows is None else x[rows], weight, eps)
        case "triton":
            from shoal.kernels import _norm

            return _norm.rms_norm(x, weight, eps, rows)
        case "torch":
            return rms_norm_torch(x, weight, eps, rows)


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float, rows: Tensor | None = None) -> Tensor:
    """The twin of `rms_norm`."""
    wide = (x if rows is None else x[rows]).float()
    mean_square = exact.tree_sum(wide * wide) / x.shape[1]
    inverse = 1.0 / (mean_square + eps).sqrt()
    return (wide * inverse[:, None] * weight.float()).to(x.dtype)

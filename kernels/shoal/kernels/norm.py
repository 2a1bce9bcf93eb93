"""Root-mean-square normalisation: y = x / sqrt(mean(x^2) + eps) * weight, fp32 inside."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels import exact, native
from shoal.kernels.target import backend_for


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise each row of x [T,H]; weight [H], applied in fp32 before the one rounding to x's dtype. -> [T,H]"""
    assert weight.shape == x.shape[1:], f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
    match backend_for(x):
        case "native":
            return native.rms_norm(x, weight, eps)
        case "triton":
            from shoal.kernels import _norm

            return _norm.rms_norm(x, weight, eps)
        case "torch":
            return rms_norm_torch(x, weight, eps)


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The twin of `rms_norm`."""
    wide = x.float()
    mean_square = exact.tree_sum(wide * wide) / x.shape[1]
    inverse = 1.0 / (mean_square + eps).sqrt()
    return (wide * inverse[:, None] * weight.float()).to(x.dtype)

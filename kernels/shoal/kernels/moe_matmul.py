"""The two grouped matmuls of a mixture of experts, on packed MXFP4 weights.

    gate_up:  z = x[rows] @ w[e].T + bias[e];  gate, up = min(z[0::2], limit), clamp(z[1::2], -limit, limit)
              h = gate * sigmoid(alpha * gate) * (up + 1)
    down:     y = h @ w[e].T + bias[e]         (unweighted: the token's own rank weights and sums, in top-k order)

Rows are sorted by expert: row r belongs to expert e with offsets[e] <= r < offsets[e+1].
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from shoal.kernels import exact, native
from shoal.kernels.mxfp4 import ExpertWeights, dequantize
from shoal.kernels.native import PackedExperts
from shoal.kernels.target import backend_for

Weights = ExpertWeights | PackedExperts
"""As published, or what `prepare` made of them."""


def prepare(w: ExpertWeights, *, int8: bool = False) -> Weights:
    """The experts as their backend reads them fastest: packed on a CPU with native kernels, else unchanged.

    `int8` rounds activations to 8 bits before they meet these weights; native kernels alone can do that.
    """
    backend = backend_for(w.blocks)
    assert not int8 or backend == "native", f"{backend} kernels keep their activations"
    return native.pack_experts(w, int8=int8) if backend == "native" else w


def gate_up(x: Tensor, rows: Tensor, offsets: Tensor, w: Weights, *, limit: float, alpha: float) -> Tensor:
    """First projection with the gather before it and the clamped SwiGLU after it.

    x [T,K] fp32 or bf16; rows i32 [R], indices into x; offsets i32 [E+1], non-decreasing from 0 to R; w [E,N,K]
    with gate and up rows interleaved. Returns [R, N/2] in x's dtype; a row depends on
    x[rows[r]] and its expert alone.
    """
    assert x.shape[1] == w.in_features, f"x has {x.shape[1]} features, the experts read {w.in_features}"
    assert offsets.shape[0] == w.num_experts + 1, f"{offsets.shape[0]} offsets for {w.num_experts} experts"
    match backend_for(x):
        case "native":
            return native.gate_up(x, rows, offsets, w, limit=limit, alpha=alpha)
        case backend if isinstance(w, PackedExperts):
            raise AssertionError(f"experts packed for native kernels reached {backend}")
        case "triton":
            from shoal.kernels import _moe_matmul

            return _moe_matmul.gate_up(x, rows, offsets, w, limit=limit, alpha=alpha)
        case "torch":
            return gate_up_torch(x, rows, offsets, w, limit=limit, alpha=alpha)


def down(h: Tensor, offsets: Tensor, w: Weights) -> Tensor:
    """Second projection. h [R,K] fp32 or bf16, offsets i32 [E+1], w [E,N,K] -> [R,N] in h's dtype."""
    assert h.shape[1] == w.in_features, f"h has {h.shape[1]} features, the experts read {w.in_features}"
    assert offsets.shape[0] == w.num_experts + 1, f"{offsets.shape[0]} offsets for {w.num_experts} experts"
    match backend_for(h):
        case "native":
            return native.down(h, offsets, w)
        case backend if isinstance(w, PackedExperts):
            raise AssertionError(f"experts packed for native kernels reached {backend}")
        case "triton":
            from shoal.kernels import _moe_matmul

            return _moe_matmul.down(h, offsets, w)
        case "torch":
            return down_torch(h, offsets, w)


def gate_up_torch(x: Tensor, rows: Tensor, offsets: Tensor, w: ExpertWeights, *, limit: float, alpha: float) -> Tensor:
    """The twin of `gate_up`: fp32 inside, one rounding at the end."""
    z = _grouped(x[rows.long()], offsets, w)
    gate = z[:, 0::2].clamp(max=limit)
    up = z[:, 1::2].clamp(-limit, limit)
    return (gate * exact.sigmoid(gate * alpha) * (up + 1.0)).to(x.dtype)


def down_torch(h: Tensor, offsets: Tensor, w: ExpertWeights) -> Tensor:
    """The twin of `down`."""
    return _grouped(h, offsets, w).to(h.dtype)


def _grouped(x: Tensor, offsets: Tensor, w: ExpertWeights) -> Tensor:
    """x [R,K] sorted by expert -> fp32 [R,N] = x @ w[e].T + bias[e], one expert decoded at a time."""
    out = torch.zeros(x.shape[0], w.out_features, dtype=torch.float32, device=x.device)
    bounds = offsets.tolist()
    for expert, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        if lo < hi:
            weight = dequantize(w.blocks[expert], w.scales[expert], torch.float32)
            out[lo:hi] = exact.matmul_t(x[lo:hi], weight) + w.bias[expert].float()
    return out

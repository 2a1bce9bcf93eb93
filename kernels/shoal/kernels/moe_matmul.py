"""The two grouped matmuls of a mixture of experts, on packed MXFP4 weights (or MXFP8, or bf16).

    gate_up:  z = x[rows] @ w[e].T + bias[e];  gate, up = min(z[0::2], limit), clamp(z[1::2], -limit, limit)
              h = gate * sigmoid(alpha * gate) * (up + 1)
    down:     y = h @ w[e].T + bias[e]         (unweighted: the token's own rank weights and sums, in top-k order)

Rows are sorted by expert: row r belongs to expert e with offsets[e] <= r < offsets[e+1].
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from shoal.kernels import exact, fragments, mxfp4, mxfp8, native
from shoal.kernels.fragments import FragmentExperts
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.kernels.mxfp8 import Bf16Weights, Mxfp8Weights
from shoal.kernels.native import PackedExperts
from shoal.kernels.target import backend_for

Weights = ExpertWeights | PackedExperts | FragmentExperts
"""MXFP4 as published, or what `prepare` made of it."""
LAYOUT = fragments.LAYOUT_VERSION
"""Raised whenever `prepare` orders bytes differently, for those who keep what it made."""
Unpacked = ExpertWeights | FragmentExperts | Mxfp8Weights | Bf16Weights
AnyWeights = Unpacked | PackedExperts
"""What the launchers take."""


def prepare(w: ExpertWeights, *, int8: bool = False) -> Weights:
    """The experts as their backend reads them fastest: packed for native kernels, permuted for Triton's.

    `int8` rounds activations to 8 bits before they meet these weights; native kernels alone can do that. Raises
    ValueError if Triton's order cannot hold a scale.
    """
    backend = backend_for(w.blocks)
    assert not int8 or backend == "native", f"{backend} kernels keep their activations"
    match backend:
        case "native":
            return native.pack_experts(w, int8=int8)
        case "triton":
            return fragments.permute(w)
        case "torch":
            return w


def gate_up(x: Tensor, rows: Tensor, offsets: Tensor, w: AnyWeights, *, limit: float, alpha: float) -> Tensor:
    """First projection with the gather before it and the clamped SwiGLU after it.

    x [T,K] fp32 or bf16; rows i32 [R], indices into x; offsets i32 [E+1], non-decreasing from 0 to R; w [E,N,K]
    with gate and up rows interleaved. Returns [R, N/2] in x's dtype; a row depends on
    x[rows[r]] and its expert alone.
    """
    assert x.shape[1] == w.in_features, f"x has {x.shape[1]} features, the experts read {w.in_features}"
    assert offsets.shape[0] == w.num_experts + 1, f"{offsets.shape[0]} offsets for {w.num_experts} experts"
    backend = backend_for(x)
    if backend == "native" and isinstance(w, ExpertWeights | PackedExperts):
        return native.gate_up(x, rows, offsets, w, limit=limit, alpha=alpha)
    assert not isinstance(w, PackedExperts), f"experts packed for native kernels reached {backend}"
    if backend == "triton":
        from shoal.kernels import _moe_matmul

        w = fragments.permute(w) if isinstance(w, ExpertWeights) else w
        return _moe_matmul.gate_up(x, rows, offsets, w, limit=limit, alpha=alpha)
    return gate_up_torch(x, rows, offsets, w, limit=limit, alpha=alpha)


def down(h: Tensor, offsets: Tensor, w: AnyWeights) -> Tensor:
    """Second projection. h [R,K] fp32 or bf16, offsets i32 [E+1], w [E,N,K] -> [R,N] in h's dtype."""
    assert h.shape[1] == w.in_features, f"h has {h.shape[1]} features, the experts read {w.in_features}"
    assert offsets.shape[0] == w.num_experts + 1, f"{offsets.shape[0]} offsets for {w.num_experts} experts"
    backend = backend_for(h)
    if backend == "native" and isinstance(w, ExpertWeights | PackedExperts):
        return native.down(h, offsets, w)
    assert not isinstance(w, PackedExperts), f"experts packed for native kernels reached {backend}"
    if backend == "triton":
        from shoal.kernels import _moe_matmul

        w = fragments.permute(w) if isinstance(w, ExpertWeights) else w
        return _moe_matmul.down(h, offsets, w)
    return down_torch(h, offsets, w)


def gate_up_torch(x: Tensor, rows: Tensor, offsets: Tensor, w: Unpacked, *, limit: float, alpha: float) -> Tensor:
    """The twin of `gate_up`: fp32 inside, one rounding at the end."""
    z = _grouped(x[rows.long()], offsets, w)
    gate = z[:, 0::2].clamp(max=limit)
    up = z[:, 1::2].clamp(-limit, limit)
    return (gate * exact.sigmoid(gate * alpha) * (up + 1.0)).to(x.dtype)


def down_torch(h: Tensor, offsets: Tensor, w: Unpacked) -> Tensor:
    """The twin of `down`."""
    return _grouped(h, offsets, w).to(h.dtype)


def _grouped(x: Tensor, offsets: Tensor, w: Unpacked) -> Tensor:
    """x [R,K] sorted by expert -> fp32 [R,N] = x @ w[e].T + bias[e], one expert decoded at a time."""
    w = fragments.restore(w) if isinstance(w, FragmentExperts) else w
    out = torch.zeros(x.shape[0], w.out_features, dtype=torch.float32, device=x.device)
    bounds = offsets.tolist()
    for expert, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        if lo < hi:
            out[lo:hi] = exact.matmul_t(x[lo:hi], _decoded(w, expert)) + w.bias[expert].float()
    return out


def _decoded(w: ExpertWeights | Mxfp8Weights | Bf16Weights, expert: int) -> Tensor:
    """One expert's weights [N,K], exact."""
    match w:
        case ExpertWeights():
            return mxfp4.dequantize(w.blocks[expert], w.scales[expert], torch.float32)
        case Mxfp8Weights():
            return mxfp8.dequantize(w.codes[expert], w.scales[expert], torch.float32)
        case Bf16Weights():
            return w.values[expert]

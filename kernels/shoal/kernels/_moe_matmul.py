"""Triton kernel of `moe_matmul`: packed weights are decoded in registers on their way into the tensor cores.

The product is computed transposed, weights on the side of 64 or more rows that the tensor cores want and tokens on the
side that may be narrow. A byte holds the elements 2i and 2i+1: instead of interleaving decoded weights, the activations
are split into even and odd columns and the two products are added, always in this order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, compute_dtype, max_tiles, tile_of
from shoal.kernels.mxfp4 import GROUP, ExpertWeights

# One shape for every batch: a row's bits must not depend on how many rows came with it.
_TILE_R, _TILE_N, _TILE_K = 32, 128, 128
_OPTIONS = {"num_warps": 4, "num_stages": 4, **ROUND_EACH}


def gate_up(x: Tensor, rows: Tensor, offsets: Tensor, w: ExpertWeights, *, limit: float, alpha: float) -> Tensor:
    out = torch.empty(rows.shape[0], w.out_features // 2, dtype=x.dtype, device=x.device)
    _launch(x, rows, offsets, w, out, limit=limit, alpha=alpha, gated=True)
    return out


def down(h: Tensor, offsets: Tensor, w: ExpertWeights) -> Tensor:
    out = torch.empty(h.shape[0], w.out_features, dtype=h.dtype, device=h.device)
    _launch(h, offsets, offsets, w, out, limit=0.0, alpha=0.0, gated=False)
    return out


def _launch(
    x: Tensor, rows: Tensor, offsets: Tensor, w: ExpertWeights, out: Tensor, *, limit: float, alpha: float, gated: bool
) -> None:
    grid = (triton.cdiv(w.out_features, _TILE_N), max_tiles(out.shape[0], w.num_experts, _TILE_R))
    if out.numel() == 0:
        return
    _moe_matmul_kernel[grid](
        x,
        rows,
        offsets,
        w.blocks,
        w.scales,
        w.bias,
        out,
        w.num_experts,
        w.out_features,
        w.in_features // GROUP,
        limit,
        alpha,
        GATED=gated,
        COMPUTE=compute_dtype(x),
        EXPERTS=triton.next_power_of_2(w.num_experts),
        TILE_R=_TILE_R,
        TILE_N=_TILE_N,
        TILE_K=_TILE_K,
        **_OPTIONS,
    )


@triton.jit
def _decode(codes, scales, COMPUTE: tl.constexpr):
    """E2M1 codes 0..15 and E8M0 scale bytes of one shape -> exact values in COMPUTE.

    The three magnitude bits become the lowest exponent bits and the highest mantissa bit of a float, which is then
    2^126 times too small, the subnormal 0.5 included. Scale byte 0 is 2^-127, a subnormal too.
    """
    if tl.bfloat16 == COMPUTE:
        small = ((codes & 8).to(tl.uint16) << 12) | ((codes & 7).to(tl.uint16) << 6)
        power = (scales.to(tl.uint16) << 7) | ((scales == 0).to(tl.uint16) << 6)
    else:
        small = ((codes & 8).to(tl.uint32) << 28) | ((codes & 7).to(tl.uint32) << 22)
        power = (scales.to(tl.uint32) << 23) | ((scales == 0).to(tl.uint32) << 22)
    return small.to(COMPUTE, bitcast=True) * 8.507059173023462e37 * power.to(COMPUTE, bitcast=True)


@triton.jit
def _moe_matmul_kernel(
    x,
    rows,
    offsets,
    blocks,
    scales,
    bias,
    out,
    num_experts,
    N,
    G,
    limit,
    alpha,
    GATED: tl.constexpr,
    COMPUTE: tl.constexpr,
    EXPERTS: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """One tile of TILE_R rows of one expert times TILE_N of its weight rows. K = 32 G."""
    expert, first, last = tile_of(tl.program_id(1), offsets, num_experts, EXPERTS, TILE_R)
    if first >= last:
        return
    r = first + tl.arange(0, TILE_R)
    live = r < last
    source = tl.load(rows + r, mask=live, other=0) if GATED else r
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    weight_row = expert.to(tl.int64) * N + n
    present = n < N

    acc = tl.zeros((TILE_N, TILE_R), tl.float32)
    for g0 in range(0, G, TILE_K // 32):
        k = g0 * 32 + tl.arange(0, TILE_K)
        byte = g0 * 16 + tl.arange(0, TILE_K // 2)
        g = g0 + tl.arange(0, TILE_K // 32)
        x_tile = tl.load(
            x + source[:, None].to(tl.int64) * (G * 32) + k[None, :],
            mask=live[:, None] & (k < G * 32)[None, :],
            other=0.0,
        ).to(COMPUTE)
        even, odd = tl.split(x_tile.reshape(TILE_R, TILE_K // 2, 2))
        packed = tl.load(
            blocks + weight_row[:, None] * (G * 16) + byte[None, :],
            mask=present[:, None] & (byte < G * 16)[None, :],
            other=0,
        )
        scale = tl.load(
            scales + weight_row[:, None] * G + g[None, :], mask=present[:, None] & (g < G)[None, :], other=0
        )
        scale = tl.broadcast_to(scale[:, :, None], (TILE_N, TILE_K // 32, 16)).reshape(TILE_N, TILE_K // 2)
        acc = tl.dot(_decode(packed & 0xF, scale, COMPUTE), tl.trans(even), acc, input_precision="ieee")
        acc = tl.dot(_decode(packed >> 4, scale, COMPUTE), tl.trans(odd), acc, input_precision="ieee")

    acc += tl.load(bias + weight_row, mask=present, other=0.0).to(tl.float32)[:, None]
    result = tl.trans(acc)
    if GATED:
        gate, up = tl.split(result.reshape(TILE_R, TILE_N // 2, 2))
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        result = gate / (1.0 + tl.exp(-alpha * gate)) * (up + 1.0)
        column = tl.program_id(0) * (TILE_N // 2) + tl.arange(0, TILE_N // 2)
        width = N // 2
    else:
        column = n
        width = N
    tl.store(
        out + r[:, None].to(tl.int64) * width + column[None, :],
        result.to(out.dtype.element_ty),
        mask=live[:, None] & (column < width)[None, :],
    )

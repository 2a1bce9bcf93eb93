"""The attention half of a layer, residual included: x + out(attention(rope(qkv(rms_norm(x))))).

On a CPU one call does it all; elsewhere it is the launchers one after another. The bits are the same either way.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shoal.kernels import native
from shoal.kernels.attention import AttentionBatch, BlockShape, rope_attention
from shoal.kernels.dense import Weight, linear
from shoal.kernels.norm import rms_norm
from shoal.kernels.target import backend_for


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One layer's attention. q, k and v are fused in rows: hq * hd, then hk * hd twice."""

    norm: Tensor  # [H]
    qkv: Weight  # [(hq + 2 hk) hd, H]
    qkv_bias: Tensor  # [(hq + 2 hk) hd]
    sinks: Tensor  # [hq], one unscaled logit per head
    out: Weight  # [H, hq hd]
    out_bias: Tensor  # [H]


def attention_block(
    x: Tensor,
    weights: BlockWeights,
    shape: BlockShape,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    batch: AttentionBatch,
    window: int | None,
    normed: Tensor | None = None,
) -> Tensor:
    """x [T,H] -> [T,H]; writes this step's keys and values.

    rope: cos, sin fp32 [P,hd/2]; positions i64 [T]; cache: keys, values [B,bs,hk,hd]; slots i64 [T].
    normed: rms_norm(x, weights.norm, shape.eps), if the kernel that made x has left it too; it spares a launch.
    """
    if backend_for(x) == "native":
        return native.attention_block(x, weights, shape, rope, positions, cache, slots, batch, window)
    return attention_block_torch(x, weights, shape, rope, positions, cache, slots, batch, window, normed)


def attention_block_torch(
    x: Tensor,
    weights: BlockWeights,
    shape: BlockShape,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    batch: AttentionBatch,
    window: int | None,
    normed: Tensor | None = None,
) -> Tensor:
    """The launchers, one by one, each on the backend of `x`."""
    if normed is None:
        normed = rms_norm(x, weights.norm, shape.eps)
    qkv = linear(normed, weights.qkv, weights.qkv_bias)
    o = rope_attention(qkv, shape, rope, positions, cache, slots, batch, weights.sinks, window)
    return linear(o, weights.out, weights.out_bias, residual=x)

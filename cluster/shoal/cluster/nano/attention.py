"""Attention with sinks for training on CPUs: PyTorch's fused kernel, corrected for the sink on the way out and back.

A sink is one more logit in the denominator. The fused kernel gives the outcome without it and the logarithm of its
denominator; adding the sink there scales the outcome, and the kernel's own backward is exact when it is given the
scaled outcome and the enlarged denominator. Registered with transformers under `NAME`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NAME = "shoal_fused"
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _SinkAttention(torch.autograd.Function):
    """q [B, h, L, d], k and v [B, h, L, d], sinks [h], mask [L, L] or None for causal -> [B, h, L, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        out, lse = _forward(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
        total = torch.logaddexp(lse, sinks[None, :, None])
        out = torch.mul(out, torch.exp(lse - total)[..., None])
        ctx.save_for_backward(q, k, v, sinks, mask, out, total)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, sinks, mask, out, total = ctx.saved_tensors
        grad = grad.contiguous()
        gq, gk, gv = _backward(grad, q, k, v, out, total, 0.0, mask is None, attn_mask=mask, scale=ctx.scale)
        share = torch.exp(sinks[None, :, None] - total)
        gsinks = -(share * (grad * out).sum(-1)).sum((0, 2))
        return gq, gk, gv, gsinks, None, None


@dataclass(frozen=True, slots=True)
class Spans:
    """Stands where transformers expects a mask: lengths of independent sequences in one row, and a layer's window."""

    lengths: tuple[int, ...]
    window: int | None


@functools.lru_cache(512)
def window_mask(length: int, window: int) -> Tensor | None:
    """Additive [L, L] mask of a sliding layer; None (plain causal) while the window covers everything."""
    if length <= window:
        return None
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    return torch.zeros(length, length).masked_fill_((distance < 0) | (distance >= window), -math.inf)


def fused_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Spans, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    """As transformers' attention functions: q [1, h, T, d], k and v [1, hk, T, d] -> [1, T, h, d], no weights."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
    lengths = attention_mask.lengths
    outs = []
    for qs, ks, vs in zip(*(torch.split(t, list(lengths), 2) for t in (q, k, v)), strict=True):
        mask = window_mask(qs.shape[2], attention_mask.window) if attention_mask.window is not None else None
        out: Tensor = _SinkAttention.apply(qs, ks, vs, options["s_aux"], mask, scaling)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        outs.append(out)
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None

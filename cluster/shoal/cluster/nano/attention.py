"""Attention with sinks for training on CPUs: PyTorch's fused kernel, corrected for the sink on the way out and back.

A sink is one more logit in the denominator. The fused kernel gives the outcome without it and the logarithm of its
denominator; adding the sink there scales the outcome, and the kernel's own backward is exact when it is given the
scaled outcome and the enlarged denominator. Registered with transformers under `NAME`.
"""

from __future__ import annotations

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
        out = out * torch.exp(lse - total)[..., None]
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


def fused_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, scaling: float, **options: Any
) -> tuple[Tensor, None]:
    """As transformers' attention functions: q [B, h, L, d], k and v [B, hk, L, d] -> [B, L, h, d], no weights.

    `attention_mask` is None for plain causal attention or an additive [L, L].
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
    out = _SinkAttention.apply(q, k, v, options["s_aux"], attention_mask, scaling)
    return out.transpose(1, 2).contiguous(), None

"""The mathematics a second time, in float64 and without a thought for speed: what kernels and twins are held against.

Nothing here is shared with the code under test: MXFP4 is decoded from the format's formula, attention builds the whole
score matrix with the sink as a column, the experts go row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.attention import AttentionBatch
from shoal.kernels.mxfp4 import ExpertWeights


def e2m1(code: int) -> float:
    """(-1)^S * 2^(E-1) * (1 + M/2), or (-1)^S * M/2 where E is 0 (OCP MX 1.0, table 5)."""
    sign, exponent, mantissa = (code >> 3) & 1, (code >> 1) & 3, code & 1
    magnitude = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -magnitude if sign else magnitude


def decode(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks u8 [..., G, 16], scales u8 [..., G] -> float64 [..., 32 G]."""
    low = blocks.cpu().long() % 16
    high = blocks.cpu().long() // 16
    values = torch.tensor([e2m1(c) for c in range(16)], dtype=torch.float64)
    pairs = torch.stack([values[low], values[high]], dim=-1).flatten(-2)
    return (pairs * 2.0 ** (scales.cpu().double() - 127)[..., None]).flatten(-2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.cpu().double() @ weight.cpu().double().T
    return y if bias is None else y + bias.cpu().double()


def expert_linear(x: Tensor, offsets: Tensor, w: ExpertWeights) -> Tensor:
    """x [R,K], row r times its expert's weights, plus bias -> float64 [R,N]."""
    weight, bounds = decode(w.blocks, w.scales), offsets.tolist()
    out = torch.zeros(x.shape[0], weight.shape[1], dtype=torch.float64)
    for expert in range(weight.shape[0]):
        for row in range(bounds[expert], bounds[expert + 1]):
            out[row] = weight[expert] @ x[row].cpu().double() + w.bias[expert].cpu().double()
    return out


def gate_up(x: Tensor, rows: Tensor, offsets: Tensor, w: ExpertWeights, limit: float, alpha: float) -> Tensor:
    z = expert_linear(x.cpu()[rows.cpu().long()], offsets, w)
    gate = torch.minimum(z[:, ::2], torch.tensor(limit, dtype=torch.float64))
    up = torch.clip(z[:, 1::2], -limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, sinks: Tensor, window: int | None, scale: float
) -> Tensor:
    """One softmax over [keys..., sink] per query and head, the sink's share dropped -> float64 [T,hq,hd]."""
    heads, kv_heads, block_size = q.shape[1], k_cache.shape[2], k_cache.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    starts = batch.cu_q.tolist()
    for s, context in enumerate(batch.context_lens.tolist()):
        table = batch.block_tables[s].tolist()
        slots = [(table[p // block_size], p % block_size) for p in range(context)]
        keys = torch.stack([k_cache[b, o].cpu().double() for b, o in slots])
        values = torch.stack([v_cache[b, o].cpu().double() for b, o in slots])
        for row in range(starts[s], starts[s + 1]):
            position = context - starts[s + 1] + row
            seen = [p for p in range(context) if p <= position and (window is None or position - p < window)]
            for head in range(heads):
                kv_head = head * kv_heads // heads
                logits = keys[seen, kv_head] @ q[row, head].cpu().double() * scale
                shares = torch.softmax(torch.cat([logits, sinks[head].cpu().double()[None]]), 0)[:-1]
                out[row, head] = shares @ values[seen, kv_head]
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.cpu().double()
    return wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + eps) * weight.cpu().double()


def rotate(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each (first half, second half) pair as a complex number, times cos + i sin."""
    wide = x.cpu().double()
    half = x.shape[-1] // 2
    angles = torch.complex(cos.cpu().double(), sin.cpu().double())[positions.cpu()][:, None, :]
    turned = torch.complex(wide[..., :half], wide[..., half:]) * angles
    return torch.cat([turned.real, turned.imag], dim=-1)


def route(logits: Tensor, k: int) -> tuple[list[list[int]], Tensor]:
    ids = [[e for _, e in sorted((-value, e) for e, value in enumerate(row))][:k] for row in logits.tolist()]
    chosen = torch.stack([logits.cpu().double()[t, row] for t, row in enumerate(ids)])
    return ids, torch.softmax(chosen, dim=-1)

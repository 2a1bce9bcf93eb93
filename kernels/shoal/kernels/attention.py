"""Paged grouped-query attention with sinks and an optional sliding window.

    score[p] = scale * q . k[p]                for visible keys p;   sink: one extra unscaled logit per head
    out      = sum_p exp(score[p]) v[p] / (exp(sink) + sum_p exp(score[p]))

The KV cache is [blocks, block_size, kv_heads, head_dim]; a sequence's block table lists its blocks in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels import exact, native
from shoal.kernels.rope import apply_rope_
from shoal.kernels.target import backend_for

_KEY_BLOCK = 64  # keys per step of the twin, aligned to absolute positions: fixes the order of every sum
_QUERY_BLOCK = 8


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The sequences of one step, S of them, whose T queries lie one after the other.

    cu_q i32 [S+1]: sequence s has queries cu_q[s] .. cu_q[s+1]-1. context_lens i32 [S]: its keys, this step's
    included, so that its queries are its last positions. block_tables i32 [S, max_blocks]: entries past its end unused.

    A step whose shapes are larger than its work is filled up with sequences of no keys (context 0, no query) behind
    the others, and with tokens whose slot is negative: nothing is written for them, what is computed for them means
    nothing (not on native kernels, which need no fixed shapes). T == S promises that every sequence brings one query,
    token s that of sequence s, or is such a filler.
    """

    cu_q: Tensor
    context_lens: Tensor
    block_tables: Tensor


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Heads of `head_dim`, the norm's epsilon, and what the scores are multiplied by."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float


def rope_attention(
    qkv: Tensor,
    shape: BlockShape,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
) -> Tensor:
    """What lies between the fused projection and the output projection: qkv [T, (hq + 2 hk) hd] -> [T, hq hd].

    Rotates q and k, stores k and v at their slots, attends. rope: cos, sin fp32 [P,hd/2]; positions i64 [T]; cache:
    keys, values [B,bs,hk,hd]; slots i64 [T]. The bits are those of `apply_rope_`, `write_kv` and `attention`.
    """
    if backend_for(qkv) == "triton":
        from shoal.kernels import _attention

        return _attention.rope_attention(qkv, shape, rope, positions, cache, slots, batch, sinks, window)
    return rope_attention_torch(qkv, shape, rope, positions, cache, slots, batch, sinks, window)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store k, v [T,hk,hd] in the caches [B,bs,hk,hd] in place, token t at slots[t] = block * bs + offset (i64 [T])."""
    assert k.shape == v.shape, f"k {tuple(k.shape)}, v {tuple(v.shape)}"
    assert k.shape[0] == slots.shape[0], f"{k.shape[0]} tokens, {slots.shape[0]} slots"
    match backend_for(k):
        case "native":
            native.write_kv(k, v, k_cache, v_cache, slots)
        case "triton":
            from shoal.kernels import _attention

            _attention.write_kv(k, v, k_cache, v_cache, slots)
        case "torch":
            write_kv_torch(k, v, k_cache, v_cache, slots)


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """q [T,hq,hd], caches [B,bs,hk,hd], sinks [hq] -> [T,hq,hd] in q's dtype.

    Query j of sequence s stands at pos = context_lens[s] - (cu_q[s+1] - cu_q[s]) + j and sees the keys p <= pos with
    window None or pos - p < window. Its row is the same bits whether it came in a prompt, in a chunk of one, or alone.
    """
    heads, kv_heads = q.shape[1], k_cache.shape[2]
    assert heads % kv_heads == 0, f"{heads} query heads over {kv_heads} KV heads"
    assert window is None or window > 0, f"window {window}"
    match backend_for(q):
        case "native":
            return native.attention(q, k_cache, v_cache, batch, sinks, window, scale)
        case "triton":
            from shoal.kernels import _attention

            return _attention.attention(q, k_cache, v_cache, batch, sinks, window, scale)
        case "torch":
            return attention_torch(q, k_cache, v_cache, batch, sinks, window, scale)


def rope_attention_torch(
    qkv: Tensor,
    shape: BlockShape,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
) -> Tensor:
    """The launchers, one by one, each on the backend of `qkv`."""
    hq, hk, hd = shape.heads, shape.kv_heads, shape.head_dim
    q, k, v = (part.contiguous() for part in torch.split(qkv, [hq * hd, hk * hd, hk * hd], dim=-1))
    q, k, v = q.view(-1, hq, hd), k.view(-1, hk, hd), v.view(-1, hk, hd)
    apply_rope_(q, k, positions, *rope)
    write_kv(k, v, *cache, slots)
    return attention(q, *cache, batch, sinks, window, shape.scale).view(-1, hq * hd)


def write_kv_torch(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """The twin of `write_kv`."""
    real = slots >= 0
    k_cache.flatten(0, 1)[slots[real]] = k[real].to(k_cache.dtype)
    v_cache.flatten(0, 1)[slots[real]] = v[real].to(v_cache.dtype)


def attention_torch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """The twin of `attention`: a running softmax over key blocks, never the whole score matrix."""
    out = torch.empty_like(q)
    starts, lengths = batch.cu_q.tolist(), batch.context_lens.tolist()
    for s, context in enumerate(lengths):
        first = context - (starts[s + 1] - starts[s])
        for lo in range(starts[s], starts[s + 1], _QUERY_BLOCK):
            hi = min(lo + _QUERY_BLOCK, starts[s + 1])
            positions = torch.arange(lo, hi, device=q.device) - starts[s] + first
            out[lo:hi] = _attend(q[lo:hi], positions, k_cache, v_cache, batch.block_tables[s], sinks, window, scale)
    return out


def _attend(
    q: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    sinks: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """Queries [n,hq,hd] of one sequence at consecutive `positions` i64 [n] -> [n,hq,hd].

    A key block that a query does not see changes nothing for it, not even a rounding: its weights are exactly 0 and its
    maximum stays. So queries may share a call, and a chunk may start anywhere.
    """
    n, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    grouped = q.float().view(n, kv_heads, heads // kv_heads, 1, head_dim)
    maximum = sinks.float().view(1, kv_heads, heads // kv_heads).expand(n, -1, -1)
    total = torch.ones_like(maximum)  # the sink's own share, exp(sink - maximum)
    acc = torch.zeros(n, kv_heads, heads // kv_heads, head_dim, device=q.device)
    last = int(positions[-1])
    first = 0 if window is None else max(0, int(positions[0]) - window + 1)
    for start in range(first // _KEY_BLOCK * _KEY_BLOCK, last + 1, _KEY_BLOCK):
        keys = torch.arange(start, start + _KEY_BLOCK, device=q.device)
        inside = keys.clamp(max=last)  # past the end: any key that exists, its weight is 0
        blocks = block_table[inside // block_size].long()
        k = k_cache[blocks, inside % block_size].float().permute(1, 0, 2)  # [hk, keys, hd]
        v = v_cache[blocks, inside % block_size].float().permute(1, 2, 0).contiguous()  # [hk, hd, keys]
        distance = positions[:, None] - keys
        visible = (distance >= 0) & (distance < (last + 1 if window is None else window))
        scores = exact.tree_sum(grouped * k[:, None]) * scale  # [n, hk, group, keys]
        scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
        new_maximum = torch.maximum(maximum, scores.amax(-1))
        weights = exact.exp(scores - new_maximum[..., None])
        shrink = exact.exp(maximum - new_maximum)
        total = total * shrink + exact.tree_sum(weights)
        acc = acc * shrink[..., None] + exact.tree_sum(weights[..., None, :] * v[:, None])
        maximum = new_maximum
    return (acc / total[..., None]).view(n, heads, head_dim).to(q.dtype)

"""Whole parts of a layer in one call of the native library: what their launchers do one by one, the same bits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from shoal.kernels.native import binding
from shoal.kernels.native.binding import (
    EVERY_KEY,
    Experts,
    Library,
    Paging,
    check,
    check_experts,
    check_linear,
)
from shoal.kernels.native.packing import PackedExperts, PackedLinear


class Attention(Protocol):
    """norm [H], qkv bf16 [(hq+2hk)hd,H], qkv_bias, sinks [hq], out bf16 [H,hq*hd], out_bias bf16."""

    @property
    def norm(self) -> Tensor: ...
    @property
    def qkv(self) -> Tensor | PackedLinear: ...
    @property
    def qkv_bias(self) -> Tensor: ...
    @property
    def sinks(self) -> Tensor: ...
    @property
    def out(self) -> Tensor | PackedLinear: ...
    @property
    def out_bias(self) -> Tensor: ...


class Heads(Protocol):
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def eps(self) -> float: ...
    @property
    def scale(self) -> float: ...


def norm_linear(
    library: Library, x: Tensor, norm: Tensor, eps: float, weight: Tensor | PackedLinear, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x [T,H], norm [H], weight bf16 [N,H], bias bf16 [N] -> (normed [T,H], [T,N])."""
    packed = library.pack_linear(weight)
    (T, H), N = x.shape, packed.rows
    norm = norm.float()
    check(x, torch.float32, (T, H))
    check(norm, torch.float32, (H,))
    check_linear(packed, bias, N, H)
    normed, out = torch.empty_like(x), torch.empty((T, N), dtype=torch.float32)
    binding.call(library.c.shoal_norm_linear, x, norm, packed.data, bias, normed, out, T, N, H, eps)
    return normed, out


def attention_block(
    library: Library,
    x: Tensor,
    weights: Attention,
    shape: Heads,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    batch: Paging,
    window: int | None,
) -> Tensor:
    """x [T,H] -> x + attention [T,H]; keys and values written to the caches [B,bs,hk,hd] at slots i64 [T]."""
    (T, H), hq, hk, hd = x.shape, shape.heads, shape.kv_heads, shape.head_dim
    (B, bs, _, _), P, fused = cache[0].shape, rope[0].shape[0], (hq + 2 * hk) * hd
    S, max_blocks = batch.block_tables.shape
    assert window is None or window >= 1, window
    norm, sinks = weights.norm.float(), weights.sinks.float()
    check(x, torch.float32, (T, H))
    check(norm, torch.float32, (H,))
    check(sinks, torch.float32, (hq,))
    qkv, projection = library.pack_linear(weights.qkv), library.pack_linear(weights.out)
    check_linear(qkv, weights.qkv_bias, fused, H)
    check_linear(projection, weights.out_bias, H, hq * hd)
    check(positions, torch.int64, (T,))
    check(slots, torch.int64, (T,))
    check(batch.cu_q, torch.int32, (S + 1,))
    check(batch.context_lens, torch.int32, (S,))
    check(batch.block_tables, torch.int32, (S, max_blocks))
    for table in rope:
        check(table, torch.float32, (P, hd // 2))
    for part in cache:
        check(part, torch.float32, (B, bs, hk, hd))
    out = torch.empty_like(x)
    binding.call(
        library.c.shoal_attention_block,
        *(x, norm, qkv.data, weights.qkv_bias, projection.data, weights.out_bias, sinks, positions, *rope),
        *(*cache, slots, batch.cu_q, batch.context_lens, batch.block_tables, out),
        *(T, H, hq, hk, hd, P, S, B, bs, max_blocks, EVERY_KEY if window is None else window),
        *(shape.eps, shape.scale),
    )
    return out


def expert_rows(
    library: Library,
    x: Tensor,
    ids: Tensor,
    slot_of: Tensor,
    w_up: Experts | PackedExperts,
    w_down: Experts | PackedExperts,
    loads: Tensor,
    *,
    limit: float,
    alpha: float,
) -> Tensor:
    """x [T,H], ids i32 [T,k] (negative: elsewhere), slot_of i32 [E] -> [P,H], a row per pair, in ids' order."""
    (T, H), (_, k) = x.shape, ids.shape
    up, down = library.pack_experts(w_up), library.pack_experts(w_down)
    slots, N = check_experts(up, H)
    _, outputs = check_experts(down, N // 2)
    assert outputs == H, (outputs, H)
    assert up.int8 == down.int8, (up.int8, down.int8)
    check(x, torch.float32, (T, H))
    check(ids, torch.int32, (T, k))
    check(slot_of, torch.int32, (slot_of.shape[0],))
    check(loads, torch.int64, (slots,))
    out, pairs = torch.empty((T * k, H), dtype=torch.float32), torch.empty(1, dtype=torch.int64)
    binding.call(
        library.c.shoal_expert_rows,
        *(x, ids, slot_of, up.blocks, up.scales, up.bias, down.blocks, down.scales, down.bias),
        *(out, loads, pairs, T, k, slot_of.shape[0], slots, H, N // 2, up.int8, limit, alpha),
    )
    return out[: int(pairs)]

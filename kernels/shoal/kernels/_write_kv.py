"""Triton kernels that store keys and values in the cache: as they are, or out of fused rows, the keys turned first."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH
from shoal.kernels._rope import turn


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    tokens = k.shape[0]
    width = k.shape[1] * k.shape[2]
    if tokens:
        padded = triton.next_power_of_2(width)
        _write_kv_kernel[(tokens,)](k, v, k_cache, v_cache, slots, width, WIDTH=padded, **ROUND_EACH)


def rotate_and_write(
    qkv: Tensor,
    heads: int,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> None:
    """The keys of fused rows [T, (hq + 2 hk) hd] turned, and the values, at their slots."""
    tokens, (_, _, kv_heads, head_dim) = qkv.shape[0], k_cache.shape
    if tokens:
        _rotate_and_write_kernel[(tokens,)](
            qkv, slots, heads, kv_heads, positions, cos, sin, k_cache, v_cache,
            HEADS=triton.next_power_of_2(kv_heads), HEAD_DIM=head_dim, **ROUND_EACH,
        )  # fmt: skip


@triton.jit
def turn_and_write(
    qkv, token, slot, kv_head, heads, kv_heads, positions, cos, sin, k_cache, v_cache, HEAD_DIM: tl.constexpr
):
    """Key and value of one token at `slot`, of the heads `kv_head` [n]; those past the last one are left out."""
    d = tl.arange(0, HEAD_DIM)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    inside = (kv_head < kv_heads)[:, None]
    k_at = qkv + (token.to(tl.int64) * (heads + 2 * kv_heads) + heads + kv_head)[:, None] * HEAD_DIM
    angle = tl.load(positions + token) * half + d % half
    key = turn(
        tl.load(k_at + d, mask=inside, other=0.0),
        tl.load(k_at + (d + half) % HEAD_DIM, mask=inside, other=0.0),
        tl.load(cos + angle),
        tl.load(sin + angle),
        d < half,
    )
    value = tl.load(k_at + kv_heads * HEAD_DIM + d, mask=inside, other=0.0)
    to = (slot * kv_heads + kv_head)[:, None] * HEAD_DIM + d
    tl.store(k_cache + to, key.to(k_cache.dtype.element_ty), mask=inside)
    tl.store(v_cache + to, value.to(v_cache.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_and_write_kernel(
    qkv, slots, heads, kv_heads, positions, cos, sin, k_cache, v_cache, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    if slot >= 0:
        kv_head = tl.arange(0, HEADS)
        turn_and_write(qkv, token, slot, kv_head, heads, kv_heads, positions, cos, sin, k_cache, v_cache, HEAD_DIM)


@triton.jit
def _write_kv_kernel(k, v, k_cache, v_cache, slots, width, WIDTH: tl.constexpr):
    """Copy one token's keys and values, `width` numbers each, to its slot; nowhere if that is negative."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, WIDTH)
    slot = tl.load(slots + token)
    inside = (i < width) & (slot >= 0)
    k_row = tl.load(k + token * width + i, mask=inside)
    v_row = tl.load(v + token * width + i, mask=inside)
    tl.store(k_cache + slot * width + i, k_row.to(k_cache.dtype.element_ty), mask=inside)
    tl.store(v_cache + slot * width + i, v_row.to(v_cache.dtype.element_ty), mask=inside)

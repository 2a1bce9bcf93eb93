"""Triton kernels of `attention`: one body for prompts and for decoding, so that both give the same bits.

Keys are visited in tiles of _KEYS, and tiles are gathered into splits of _SPLIT keys, both counted from position 0. A
split is summed by itself and splits are merged in order, whether one program does it all (whole) or one program per
split leaves its part for a merging kernel (a long context with few queries). What a row does not see, tile or split,
leaves its sums exactly as they are, so a row never depends on its neighbours.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, compute_dtype, max_tiles, tile_of

if TYPE_CHECKING:
    from shoal.kernels.attention import AttentionBatch

_ROWS = 64  # queries times heads of one KV head in one tile
_KEYS = 64
_SPLIT = 1024
_ENOUGH_PROGRAMS = 256  # with fewer, a GPU is idle and a long context is worth splitting
_LOG2_E = tl.constexpr(1.4426950408889634)
_OPTIONS = {"num_warps": 4, "num_stages": 2, **ROUND_EACH}


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    tokens, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    sequences, max_blocks = batch.block_tables.shape
    group = heads // kv_heads
    out = torch.empty_like(q)
    if tokens == 0:
        return out
    tiles = max_tiles(tokens, sequences, _ROWS // group)
    splits = triton.cdiv(max_blocks * block_size, _SPLIT)
    whole = window is not None or splits == 1 or tiles * kv_heads >= _ENOUGH_PROGRAMS
    parts = (1, 1) if whole else (tokens * heads, splits)
    part_sum = torch.empty(*parts, head_dim, dtype=torch.float32, device=q.device)
    part_max, part_total = (torch.empty(parts, dtype=torch.float32, device=q.device) for _ in range(2))
    where = (batch.cu_q, batch.context_lens)
    shape = {
        "SEQUENCES": triton.next_power_of_2(sequences),
        "HEAD_DIM": head_dim,
        "SPLIT": _SPLIT,
    }
    _attention_kernel[(tiles, kv_heads, 1 if whole else splits)](
        q,
        k_cache,
        v_cache,
        *where,
        batch.block_tables,
        sinks,
        out,
        part_sum,
        part_max,
        part_total,
        sequences,
        kv_heads,
        max_blocks,
        splits,
        0 if window is None else window,
        scale * _LOG2_E.value,
        **shape,
        WHOLE=whole,
        GROUP=group,
        BLOCK=block_size,
        COMPUTE=compute_dtype(q),
        ROWS=_ROWS,
        KEYS=_KEYS,
        **_OPTIONS,
    )
    if not whole:
        _merge_kernel[(tokens, heads)](
            part_sum, part_max, part_total, *where, sinks, out, sequences, splits, **shape, num_warps=1, **ROUND_EACH
        )
    return out


@triton.jit
def _merge(total, maximum, acc, part_total, part_max, part_acc):
    """Add one split's softmax sums to those of the splits before it."""
    new_max = tl.maximum(maximum, part_max)
    old_scale, part_scale = tl.exp2(maximum - new_max), tl.exp2(part_max - new_max)
    total = total * old_scale + part_total * part_scale
    return total, new_max, acc * tl.expand_dims(old_scale, -1) + part_acc * tl.expand_dims(part_scale, -1)


@triton.jit(do_not_specialize=["sequences", "max_blocks", "splits", "window"])
def _attention_kernel(
    q,
    k_cache,
    v_cache,
    cu_q,
    context_lens,
    block_tables,
    sinks,
    out,
    part_sum,
    part_max,
    part_total,
    sequences,
    kv_heads,
    max_blocks,
    splits,
    window,
    scale_log2,
    SEQUENCES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """A tile of ROWS // GROUP queries of one sequence, each with the GROUP heads of one KV head. window 0: all keys."""
    queries: tl.constexpr = ROWS // GROUP
    seq, first, end = tile_of(tl.program_id(0), cu_q, sequences, SEQUENCES, queries)
    if first >= end:
        return
    kv_head = tl.program_id(1)
    context = tl.load(context_lens + seq)
    row = tl.arange(0, ROWS)
    query = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    live = (row // GROUP < queries) & (query < end)
    position = context - end + query
    d = tl.arange(0, HEAD_DIM)
    q_row = query.to(tl.int64) * (kv_heads * GROUP) + head
    q_tile = tl.load(q + q_row[:, None] * HEAD_DIM + d[None, :], mask=live[:, None], other=0.0).to(COMPUTE)
    # Every maximum starts at the sink: no -inf ever meets another, and nothing overflows.
    sink = tl.load(sinks + head, mask=live, other=0.0).to(tl.float32) * _LOG2_E

    nearest = context - end + first  # of the tile's queries, the one that stands first
    until = tl.minimum(nearest + queries, context)
    since = tl.maximum(nearest - window + 1, 0) * (window > 0).to(tl.int32)
    if WHOLE:
        first_split, last_split = since // SPLIT, (until - 1) // SPLIT
    else:
        first_split, last_split = tl.program_id(2), tl.program_id(2)
        if first_split * SPLIT >= until:
            return

    maximum, total = sink, tl.full((ROWS,), 1.0, tl.float32)
    acc = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    for split in range(first_split, last_split + 1):
        split_max, split_total = sink, tl.zeros((ROWS,), tl.float32)
        split_acc = tl.zeros((ROWS, HEAD_DIM), tl.float32)
        begin = tl.maximum(since // KEYS * KEYS, split * SPLIT)
        for start in range(begin, tl.minimum(until, (split + 1) * SPLIT), KEYS):
            key = start + tl.arange(0, KEYS)
            there = key < until
            block = tl.load(block_tables + seq.to(tl.int64) * max_blocks + key // BLOCK, mask=there, other=0)
            slot = (block.to(tl.int64) * BLOCK + key % BLOCK) * kv_heads + kv_head
            k_tile = tl.load(k_cache + slot[None, :] * HEAD_DIM + d[:, None], mask=there[None, :], other=0.0)
            v_tile = tl.load(v_cache + slot[:, None] * HEAD_DIM + d[None, :], mask=there[:, None], other=0.0)
            score = tl.dot(q_tile, k_tile.to(COMPUTE), input_precision="ieee") * scale_log2
            distance = position[:, None] - key[None, :]
            visible = (distance >= 0) & ((distance < window) | (window == 0))
            score = tl.where(visible, score, float("-inf"))
            new_max = tl.maximum(split_max, tl.max(score, 1))
            weight = tl.exp2(score - new_max[:, None])
            shrink = tl.exp2(split_max - new_max)
            split_total = split_total * shrink + tl.sum(weight, 1)
            split_acc = tl.dot(
                weight.to(COMPUTE), v_tile.to(COMPUTE), split_acc * shrink[:, None], input_precision="ieee"
            )
            split_max = new_max
        if WHOLE:
            total, maximum, acc = _merge(total, maximum, acc, split_total, split_max, split_acc)
        else:
            part = q_row * splits + split
            tl.store(part_sum + part[:, None] * HEAD_DIM + d[None, :], split_acc, mask=live[:, None])
            tl.store(part_max + part, split_max, mask=live)
            tl.store(part_total + part, split_total, mask=live)
    if WHOLE:
        tl.store(
            out + q_row[:, None] * HEAD_DIM + d[None, :],
            (acc / total[:, None]).to(out.dtype.element_ty),
            mask=live[:, None],
        )


@triton.jit(do_not_specialize=["sequences", "splits"])
def _merge_kernel(
    part_sum,
    part_max,
    part_total,
    cu_q,
    context_lens,
    sinks,
    out,
    sequences,
    splits,
    SEQUENCES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Merge one query head's splits in order, with the arithmetic of the whole kernel."""
    query, head = tl.program_id(0), tl.program_id(1)
    seq, _first, end = tile_of(query, cu_q, sequences, SEQUENCES, 1)
    position = tl.load(context_lens + seq) - end + query
    one = tl.arange(0, 1)
    d = tl.arange(0, HEAD_DIM)
    maximum = tl.load(sinks + head + one).to(tl.float32) * _LOG2_E
    total = tl.full((1,), 1.0, tl.float32)
    acc = tl.zeros((1, HEAD_DIM), tl.float32)
    row = query.to(tl.int64) * tl.num_programs(1) + head
    for split in range(0, position // SPLIT + 1):
        part = row * splits + split + one
        part_acc = tl.load(part_sum + part[:, None] * HEAD_DIM + d[None, :])
        total, maximum, acc = _merge(
            total, maximum, acc, tl.load(part_total + part), tl.load(part_max + part), part_acc
        )
    tl.store(out + (row + one)[:, None] * HEAD_DIM + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty))


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    tokens = k.shape[0]
    width = k.shape[1] * k.shape[2]
    if tokens:
        padded = triton.next_power_of_2(width)
        _write_kv_kernel[(tokens,)](k, v, k_cache, v_cache, slots, width, WIDTH=padded, **ROUND_EACH)


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

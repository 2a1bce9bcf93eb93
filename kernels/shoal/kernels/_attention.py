"""The Triton kernel of `attention`: one body for prompts and for decoding, so that both give the same bits.

Keys are visited in tiles, and tiles are gathered into splits whose borders are fixed places in the context: _NEAR keys
each for the first _NEARS of them, _FAR keys each beyond. A split is summed by itself, and splits are merged in order by
whoever does it: one program for all of them (whole), or several that each take a run of splits and leave their sums in
memory, where the last one to arrive merges them. What a row does not see, tile or split, leaves its sums exactly as
they are. So a row never depends on its neighbours, on the height of its tile or on the number of programs.

In a step where every sequence brings one token, the kernel also stores the token's key and value: the program that
reads that position writes it first. Elsewhere `_write_kv` does, in a launch before.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, compute_dtype, max_tiles, tile_of
from shoal.kernels._rope import turn
from shoal.kernels._softmax_sums import LOG2_E, merge, merge_parts, next_split, splits_before, walk
from shoal.kernels._write_kv import rotate_and_write, turn_and_write, write_kv
from shoal.kernels.chips import chip_for

if TYPE_CHECKING:
    from shoal.kernels.attention import AttentionBatch, BlockShape

_NEAR, _NEARS, _FAR = 256, 32, 1024  # _FAR and _NEAR * _NEARS are multiples of _NEAR, all of a tile's keys
_PROGRAMS = 1024  # worth keeping busy: twice what an H200 holds at once
_ENOUGH_TALL = 256
_FEWEST_SHARES = 4  # of a sequence; with fewer, parts in memory cost more than they win
_MOST_SPLIT_TOKENS = 64  # bounds the memory for parts, and places in it to 32 bits
_SEQUENCES = 64  # that a tile of a prompt looks itself up among, at least: each further power of two is compiled anew
_MERGE_AHEAD = 8  # parts that are loaded before the first of them is needed

__all__ = ["attention", "rope_attention", "write_kv"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """What it takes to read q from fused rows and, where `slots` are given, to store the keys and values in them."""

    positions: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor | None


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    return _launch(q, torch.empty_like(q), k_cache, v_cache, batch, sinks, window, scale, None)


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
    tokens = qkv.shape[0]
    one_each = tokens == batch.context_lens.shape[0]
    make = qkv.new_empty if one_each else qkv.new_zeros  # of a chunk's rows the kernel leaves those that only fill up
    out = make(tokens, shape.heads, shape.head_dim)
    if not one_each:
        rotate_and_write(qkv, shape.heads, positions, *rope, *cache, slots)
    rotation = Rotation(positions, *rope, slots if one_each else None)
    _launch(qkv, out, *cache, batch, sinks, window, shape.scale, rotation)
    return out.view(tokens, shape.heads * shape.head_dim)


def _launch(
    q: Tensor,
    out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    sinks: Tensor,
    window: int | None,
    scale: float,
    rotation: Rotation | None,
) -> Tensor:
    """q [T,hq,hd], or fused rows if there is a `rotation`. Grids follow from shapes alone: nothing waits for a GPU."""
    tokens, heads, head_dim = out.shape
    block_size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    sequences, max_blocks = batch.block_tables.shape
    if tokens == 0:
        return out
    group, one_each = heads // kv_heads, tokens == sequences
    tile = chip_for(q).attention
    rows = _rows(tile.rows, tokens, sequences, kv_heads, group)
    tiles = sequences if one_each else max_tiles(tokens, sequences, rows // group)
    splits = _count_splits(max_blocks * block_size)
    shares = _shares(tokens, tiles * kv_heads, splits) if window is None else 1
    parts = (1, 1) if shares == 1 else (tokens * heads, splits)
    part_sum = torch.empty(*parts, head_dim, dtype=torch.float32, device=q.device)
    part_max, part_total = (torch.empty(parts, dtype=torch.float32, device=q.device) for _ in range(2))
    r = rotation or Rotation(batch.context_lens, sinks, sinks, None)  # placeholders: the kernel reads none of them
    _attention_kernel[(kv_heads, tiles, shares)](
        q,
        k_cache,
        v_cache,
        batch.cu_q,
        batch.context_lens,
        batch.block_tables,
        sinks,
        out,
        r.positions,
        r.cos,
        r.sin,
        batch.context_lens if r.slots is None else r.slots,
        part_sum,
        part_max,
        part_total,
        _arrivals(q.device),
        sequences,
        kv_heads,
        max_blocks,
        splits,
        0 if window is None else window,
        scale * LOG2_E.value,
        SEQUENCES=1 if one_each else max(_SEQUENCES, triton.next_power_of_2(sequences)),
        ONE_EACH=one_each,
        ROTATE=rotation is not None,
        WRITE=r.slots is not None,
        WINDOWED=window is not None,
        WHOLE=shares == 1,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK=block_size,
        COMPUTE=compute_dtype(q),
        ROWS=rows,
        MERGE_ROWS=triton.next_power_of_2(group),
        KEYS=tile.keys,
        NEAR=_NEAR,
        NEARS=_NEARS,
        FAR=_FAR,
        AHEAD=_MERGE_AHEAD,
        num_warps=(tile.warps if shares == 1 else tile.warps_sharing) * rows // 64,
        num_stages=tile.stages,
        **ROUND_EACH,
    )
    return out


def _rows(most: int, tokens: int, sequences: int, kv_heads: int, group: int) -> int:
    """Of a tile: queries times heads of one KV head. Tall tiles read the keys less often, where enough occupy a GPU."""
    tall = tokens != sequences and max_tiles(tokens, sequences, most // group) * kv_heads >= _ENOUGH_TALL
    return most if tall else 64


def _count_splits(keys: int) -> int:
    near = _NEAR * _NEARS
    return -(-min(keys, near) // _NEAR) - (-max(keys - near, 0) // _FAR)


def _shares(tokens: int, programs: int, splits: int) -> int:
    """How many programs share the keys of one tile and KV head."""
    shares = _PROGRAMS // programs
    return min(shares, splits) if shares >= _FEWEST_SHARES and tokens <= _MOST_SPLIT_TOKENS else 1


@functools.cache
def _arrivals(device: torch.device) -> Tensor:
    """Per tile and KV head, how many of its splits lie in memory; 0 between launches, which are one after another."""
    return torch.zeros(_PROGRAMS // _FEWEST_SHARES, dtype=torch.int32, device=device)


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
    positions,
    cos,
    sin,
    slots,
    part_sum,
    part_max,
    part_total,
    arrivals,
    sequences,
    kv_heads,
    max_blocks,
    splits,
    window,
    scale_log2,
    SEQUENCES: tl.constexpr,
    ONE_EACH: tl.constexpr,
    ROTATE: tl.constexpr,
    WRITE: tl.constexpr,
    WINDOWED: tl.constexpr,
    WHOLE: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    NEAR: tl.constexpr,
    NEARS: tl.constexpr,
    FAR: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """ROWS // GROUP queries of one sequence, each with the GROUP heads of one KV head, over a share of their keys."""
    kv_head = tl.program_id(0)
    if ONE_EACH:
        tile = tl.program_id(1)
        seq, first, end = tile, tile, tile + 1
    else:
        tile = tl.num_programs(1) - 1 - tl.program_id(1)  # those that see the most keys begin first
        seq, first, end = tile_of(tile, cu_q, sequences, SEQUENCES, ROWS // GROUP)
        if first >= end:
            return
    context = tl.load(context_lens + seq)
    nearest = context - end + first  # where the first of the tile's queries stands
    until = tl.minimum(nearest + ROWS // GROUP, context)
    if WHOLE:
        begin = 0
        if WINDOWED:
            begin = tl.maximum(nearest - window + 1, 0) // KEYS * KEYS
        stop = until
    else:
        share = (until + tl.num_programs(2) - 1) // tl.num_programs(2)
        begin = next_split(tl.program_id(2) * share, NEAR, NEARS, FAR)
        stop = tl.minimum(next_split((tl.program_id(2) + 1) * share, NEAR, NEARS, FAR), until)
        if begin >= stop:
            if ONE_EACH and (tl.program_id(2) == 0):  # a filler: what follows it finds no NaN
                width: tl.constexpr = triton.next_power_of_2(GROUP * HEAD_DIM)
                n = tl.arange(0, width)
                at = (seq.to(tl.int64) * kv_heads + kv_head) * (GROUP * HEAD_DIM) + n
                tl.store(out + at, tl.zeros((width,), out.dtype.element_ty), mask=n < GROUP * HEAD_DIM)
            return

    row = tl.arange(0, ROWS)
    query = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    live = (row // GROUP < ROWS // GROUP) & (query < end)
    position = context - end + query
    d = tl.arange(0, HEAD_DIM)
    half: tl.constexpr = HEAD_DIM // 2
    heads = kv_heads * GROUP
    if ROTATE:
        q_at = q + (query.to(tl.int64) * (heads + 2 * kv_heads) + head) * HEAD_DIM
        angle = tl.load(positions + query, mask=live, other=0)[:, None] * half + (d % half)[None, :]
        q_tile = turn(
            tl.load(q_at[:, None] + d[None, :], mask=live[:, None], other=0.0),
            tl.load(q_at[:, None] + ((d + half) % HEAD_DIM)[None, :], mask=live[:, None], other=0.0),
            tl.load(cos + angle, mask=live[:, None], other=0.0),
            tl.load(sin + angle, mask=live[:, None], other=0.0),
            (d < half)[None, :],
        )
    else:
        q_at = q + (query.to(tl.int64) * heads + head) * HEAD_DIM
        q_tile = tl.load(q_at[:, None] + d[None, :], mask=live[:, None], other=0.0)
    q_tile = q_tile.to(COMPUTE)
    # Every maximum starts at the sink: no -inf ever meets another, and nothing overflows.
    sink = tl.load(sinks + head, mask=live, other=0.0).to(tl.float32) * LOG2_E

    if WRITE:
        slot = tl.load(slots + seq)
        if (stop == until) & (slot >= 0):
            turn_and_write(
                q,
                seq,
                slot,
                kv_head + tl.arange(0, 1),
                heads,
                kv_heads,
                positions,
                cos,
                sin,
                k_cache,
                v_cache,
                HEAD_DIM,
            )
            tl.debug_barrier()  # what this program wrote, it reads below

    nothing = (tl.zeros((ROWS,), tl.float32), sink, tl.zeros((ROWS, HEAD_DIM), tl.float32))
    sums, split_sums = (tl.full((ROWS,), 1.0, tl.float32), sink, tl.zeros((ROWS, HEAD_DIM), tl.float32)), nothing
    keys = (k_cache, v_cache, block_tables + seq.to(tl.int64) * max_blocks, kv_heads, kv_head)
    if WHOLE:
        masked_from = begin
        if not (ONE_EACH or WINDOWED):  # there, a mask costs less than a second loop that fills its pipeline anew
            masked_from = (nearest + 1) // KEYS * KEYS
            sums, split_sums = walk(
                sums, split_sums, begin, masked_from, q_tile, keys, sink, position, window, scale_log2,
                False, ONE_EACH, WINDOWED, WHOLE, BLOCK, KEYS, NEAR, NEARS, FAR,
            )  # fmt: skip
        sums, split_sums = walk(
            sums, split_sums, masked_from, stop, q_tile, keys, sink, position, window, scale_log2,
            True, ONE_EACH, WINDOWED, WHOLE, BLOCK, KEYS, NEAR, NEARS, FAR,
        )  # fmt: skip
        total, maximum, acc = sums
        total, _maximum, acc = merge(total, maximum, acc, split_sums[0], split_sums[1], split_sums[2])
        out_at = out + (query.to(tl.int64) * heads + head)[:, None] * HEAD_DIM + d[None, :]
        tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=live[:, None])
    else:
        first_split, end_split = splits_before(begin, NEAR, NEARS, FAR), splits_before(stop, NEAR, NEARS, FAR)
        for split in range(first_split, end_split):
            _sums, split_sums = walk(
                sums, nothing, begin, tl.minimum(next_split(begin + 1, NEAR, NEARS, FAR), stop),
                q_tile, keys, sink, position, window, scale_log2,
                True, ONE_EACH, WINDOWED, WHOLE, BLOCK, KEYS, NEAR, NEARS, FAR,
            )  # fmt: skip
            part = (query * heads + head) * splits + split
            tl.store(part_sum + part[:, None] * HEAD_DIM + d[None, :], split_sums[2], mask=live[:, None])
            tl.store(part_max + part, split_sums[1], mask=live)
            tl.store(part_total + part, split_sums[0], mask=live)
            begin = next_split(begin + 1, NEAR, NEARS, FAR)
        tl.debug_barrier()  # all threads' parts, before this program says that they are there
        arrival = arrivals + tile * kv_heads + kv_head
        all_splits = splits_before(until, NEAR, NEARS, FAR)
        mine = end_split - first_split
        if tl.atomic_add(arrival, mine, sem="acq_rel") + mine == all_splits:
            tl.store(arrival, 0)
            for one in range(first, tl.minimum(first + ROWS // GROUP, end)):
                merge_parts(
                    (part_sum, part_max, part_total), splits, all_splits, sinks, out, one, kv_head, heads,
                    GROUP, HEAD_DIM, MERGE_ROWS, AHEAD,
                )  # fmt: skip

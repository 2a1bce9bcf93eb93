"""Triton kernels that order the work of a layer's experts: which token, which expert, which tile, which place.

Everything stays on the GPU. The host launches as many programs as the shapes could need; a surplus one finds -1 in the
schedule and returns. Nothing is added by atomics, so every order is the same in every run.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, max_tiles
from shoal.kernels.chips import chip_for

_FEW = 256  # pairs that one program orders by comparing each with each
_BLOCK = 128  # pairs of one block of the counting sort
_AT_ONCE = 16  # blocks whose counts are loaded together: each round of loads takes a memory's latency
_ENTRIES = 128  # schedule entries of one program


@dataclass(frozen=True, slots=True)
class Schedule:
    """Tiles of `tile` rows. entries i32 [most]: expert << 16 | number of the tile among its expert's, -1 for none."""

    entries: Tensor
    tile: int


@dataclass(frozen=True, slots=True)
class Arrangement:
    """(token, expert) pairs sorted by expert, stably. Only the first offsets[-1] of `rows` and `places` are set."""

    rows: Tensor  # i32 [R]: the token of each sorted pair
    places: Tensor  # i32 [R]: its number among the served pairs, in the order of the ids
    offsets: Tensor  # i32 [slots + 1]: where each slot's pairs begin
    schedule: Schedule


def schedule_tiles(offsets: Tensor, rows: int) -> Schedule:
    """The schedule of at most `rows` rows cut by offsets i32 [E+1]."""
    experts = offsets.shape[0] - 1
    tile = chip_for(offsets).moe_height(rows, experts)
    entries = torch.empty(max_tiles(rows, experts, tile), dtype=torch.int32, device=offsets.device)
    if entries.numel():
        _schedule_kernel[(triton.cdiv(entries.numel(), _ENTRIES),)](
            offsets, entries, entries.numel(), experts,
            TILE=tile, EXPERTS=triton.next_power_of_2(experts), ENTRIES=_ENTRIES, **ROUND_EACH,
        )  # fmt: skip
    return Schedule(entries, tile)


def arrange(ids: Tensor, slot_of: Tensor, loads: Tensor) -> Arrangement:
    """ids i32 [T,k], -1 for pairs served elsewhere; slot_of i32 [E], -1 for nowhere; adds each slot's pairs to loads
    i64 [slots]."""
    pairs, slots, k = ids.numel(), loads.shape[0], ids.shape[1]
    rows, places = (torch.empty(pairs, dtype=torch.int32, device=ids.device) for _ in range(2))
    offsets = torch.empty(slots + 1, dtype=torch.int32, device=ids.device)
    if pairs == 0 or slots == 0:  # nothing to do, or nobody to do it
        return Arrangement(rows, places, offsets.zero_(), Schedule(offsets[:0], 1))
    padded = triton.next_power_of_2(slots)
    if pairs > _FEW:
        blocks = triton.cdiv(pairs, _BLOCK)
        before = torch.empty(blocks, slots, dtype=torch.int32, device=ids.device)
        constants = {"SLOTS": padded, **ROUND_EACH}
        _count_kernel[(blocks,)](ids, slot_of, before, pairs, slots, ROWS=_BLOCK, **constants)
        _scan_kernel[(1,)](before, offsets, loads, blocks, slots, AT_ONCE=_AT_ONCE, **constants)
        _place_kernel[(blocks,)](
            ids, slot_of, before, offsets, rows, places, pairs, slots, K=k, ROWS=_BLOCK, **constants
        )
        return Arrangement(rows, places, offsets, schedule_tiles(offsets, pairs))
    tile = chip_for(ids).moe_height(pairs, slots)
    entries = torch.empty(max_tiles(pairs, slots, tile), dtype=torch.int32, device=ids.device)
    size = max(16, triton.next_power_of_2(pairs))
    _arrange_few_kernel[(1,)](
        ids, slot_of, loads, rows, places, offsets, entries, pairs, slots, entries.numel(),
        K=k, ROWS=size, OTHERS=min(size, 64), SLOTS=padded, TILE=tile, MOST=triton.cdiv(size, tile),
        ENTRIES=triton.next_power_of_2(entries.numel()), num_warps=8 if size > 64 else 4, **ROUND_EACH,
    )  # fmt: skip
    return Arrangement(rows, places, offsets, Schedule(entries, tile))


@triton.jit(do_not_specialize=["most"])
def _schedule_kernel(offsets, entries, most, experts, TILE: tl.constexpr, EXPERTS: tl.constexpr, ENTRIES: tl.constexpr):
    """entries[n]: the tile that is number n when each expert's rows are cut into tiles, expert by expert."""
    n = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    e = tl.arange(0, EXPERTS)
    begin = tl.load(offsets + e, mask=e < experts, other=0)
    tiles = (tl.load(offsets + e + 1, mask=e < experts, other=0) - begin + TILE - 1) // TILE
    until = tl.cumsum(tiles, 0)
    later = until[None, :] <= n[:, None]  # the experts whose tiles all come before tile n
    expert = tl.sum(later.to(tl.int32), 1)
    first = tl.max(tl.where(later, until[None, :], 0), 1)
    tl.store(entries + n, tl.where(expert < experts, (expert << 16) | (n - first), -1), mask=n < most)


@triton.jit
def _slots_of(ids, slot_of, pair, pairs):
    """The slots that serve these pairs, -1 for elsewhere."""
    expert = tl.load(ids + pair, mask=pair < pairs, other=-1)
    return tl.load(slot_of + expert, mask=expert >= 0, other=-1)


@triton.jit(do_not_specialize=["pairs", "most"])
def _arrange_few_kernel(
    ids,
    slot_of,
    loads,
    rows,
    places,
    offsets,
    entries,
    pairs,
    slots,
    most,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    MOST: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """All of `Arrangement` by one program: a pair's place in an order is how many others come before it."""
    i, s, n = tl.arange(0, ROWS), tl.arange(0, SLOTS), tl.arange(0, ENTRIES)
    slot = _slots_of(ids, slot_of, i, pairs)
    served = slot >= 0
    key = slot * ROWS + i
    rank, count = tl.zeros((ROWS,), tl.int32), tl.zeros((SLOTS,), tl.int32)
    for j0 in range(0, ROWS, OTHERS):
        j = j0 + tl.arange(0, OTHERS)
        other = _slots_of(ids, slot_of, j, pairs)
        rank += tl.sum(((other[None, :] >= 0) & ((other * ROWS + j)[None, :] < key[:, None])).to(tl.int32), 1)
        count += tl.sum((other[None, :] == s[:, None]).to(tl.int32), 1)
    place = tl.cumsum(served.to(tl.int32), 0) - 1
    tl.store(rows + rank, i // K, mask=served)
    tl.store(places + rank, place, mask=served)

    until = tl.cumsum(count, 0)
    tl.store(offsets, 0)
    tl.store(offsets + 1 + s, until, mask=s < slots)
    tl.store(loads + s, tl.load(loads + s, mask=s < slots, other=0) + count, mask=s < slots)

    tiles = (count + TILE - 1) // TILE
    first = tl.cumsum(tiles, 0) - tiles
    for tile in tl.static_range(MOST):
        tl.store(entries + first + tile, (s << 16) | tile, mask=tile < tiles)
    tl.store(entries + n, tl.full((ENTRIES,), -1, tl.int32), mask=(n >= tl.sum(tiles, 0)) & (n < most))


@triton.jit
def _one_hot(ids, slot_of, block, pairs, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """(pair numbers [ROWS], their slots, i32 [ROWS, SLOTS] with a 1 where the pair's slot is)"""
    pair = block * ROWS + tl.arange(0, ROWS)
    slot = _slots_of(ids, slot_of, pair, pairs)
    return pair, slot, (slot[:, None] == tl.arange(0, SLOTS)[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["pairs"])
def _count_kernel(ids, slot_of, counts, pairs, slots, SLOTS: tl.constexpr, ROWS: tl.constexpr):
    """counts[block, s]: pairs of this block that slot s serves."""
    block = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    _pair, _slot, hot = _one_hot(ids, slot_of, block, pairs, SLOTS, ROWS)
    tl.store(counts + block * slots + s, tl.sum(hot, 0), mask=s < slots)


@triton.jit(do_not_specialize=["blocks"])
def _scan_kernel(counts, offsets, loads, blocks, slots, SLOTS: tl.constexpr, AT_ONCE: tl.constexpr):
    """In place: counts[block, s] becomes the pairs of s in earlier blocks. offsets: where each slot's pairs start."""
    s = tl.arange(0, SLOTS)
    inside = s < slots
    running = tl.zeros((SLOTS,), tl.int32)
    for first in range(0, blocks, AT_ONCE):
        block = first + tl.arange(0, AT_ONCE)
        at = block[:, None] * slots + s[None, :]
        there = (block < blocks)[:, None] & inside[None, :]
        here = tl.load(counts + at, mask=there, other=0)
        tl.store(counts + at, running[None, :] + tl.cumsum(here, 0) - here, mask=there)
        running += tl.sum(here, 0)
    tl.store(offsets + 1 + s, tl.cumsum(running, 0), mask=inside)
    tl.store(offsets, 0)
    tl.store(loads + s, tl.load(loads + s, mask=inside, other=0) + running, mask=inside)


@triton.jit(do_not_specialize=["pairs"])
def _place_kernel(
    ids,
    slot_of,
    before,
    offsets,
    rows,
    places,
    pairs,
    slots,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each pair goes to: its slot's start + earlier blocks' pairs + earlier pairs of this block. Stable."""
    block = tl.program_id(0)
    s = tl.arange(0, SLOTS)
    pair, slot, hot = _one_hot(ids, slot_of, block, pairs, SLOTS, ROWS)
    earlier = tl.load(before + block * slots + s, mask=s < slots, other=0)
    start = tl.load(offsets + s, mask=s < slots, other=0) + earlier
    to = tl.sum((tl.cumsum(hot, 0) - 1 + start[None, :]) * hot, 1)
    place = tl.sum(earlier, 0) + tl.cumsum((slot >= 0).to(tl.int32), 0) - 1
    tl.store(rows + to, pair // K, mask=slot >= 0)
    tl.store(places + to, place, mask=slot >= 0)

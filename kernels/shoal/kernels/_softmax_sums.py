"""The softmax sums of `_attention`: over a run of keys, over splits, and over what several programs left in memory."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def splits_before(key, NEAR: tl.constexpr, NEARS: tl.constexpr, FAR: tl.constexpr):
    """How many splits begin before `key`."""
    near = tl.minimum(key, NEAR * NEARS)
    return (near + NEAR - 1) // NEAR + (key - near + FAR - 1) // FAR


@triton.jit
def next_split(key, NEAR: tl.constexpr, NEARS: tl.constexpr, FAR: tl.constexpr):
    """The first beginning of a split at or behind `key`."""
    near = tl.minimum(key, NEAR * NEARS)
    return (near + NEAR - 1) // NEAR * NEAR + (key - near + FAR - 1) // FAR * FAR


@triton.jit
def merge(total, maximum, acc, part_total, part_max, part_acc):
    """Add one split's softmax sums to those of the splits before it."""
    new_max = tl.maximum(maximum, part_max)
    old_scale, part_scale = tl.exp2(maximum - new_max), tl.exp2(part_max - new_max)
    total = tl.fma(total, old_scale, part_total * part_scale)
    part_acc = part_acc * part_scale[:, None]
    return total, new_max, tl.fma(acc, old_scale[:, None], part_acc)


@triton.jit
def _only_if(condition, part_max):
    """A maximum whose split `merge` adds, or -inf, with which it adds nothing, exactly.

    In place of a branch: Triton 3.7 lets a branch in a loop read a product that is still being computed, and the
    assembler mends that by waiting for every instruction of the tensor cores.
    """
    return tl.where(condition, part_max, float("-inf"))


@triton.jit
def _sum_keys(weight, KEYS: tl.constexpr):
    """[rows, KEYS] -> [rows], in one order for every layout: each step adds two halves, and a + b is b + a."""
    tl.static_assert(KEYS == 64 or KEYS == 128)
    rows: tl.constexpr = weight.shape[0]
    steps: tl.constexpr = 4 if KEYS == 128 else 3
    left = weight
    for i in tl.static_range(steps):  # what one thread holds
        left = tl.sum(tl.reshape(left, (rows, 2, KEYS // 16 >> i, 4, 2)), 1)
    left = tl.sum(tl.reshape(left, (rows, 4, 2)), 2)
    left = tl.sum(tl.reshape(left, (rows, 2, 2)), 1)  # what four lanes hold
    return tl.sum(left, 1)


@triton.jit
def walk(
    sums,
    split_sums,
    start,
    stop,
    q_tile,
    keys,
    sink,
    position,
    window,
    scale_log2,
    MASKED: tl.constexpr,
    ONE_EACH: tl.constexpr,
    WINDOWED: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    NEAR: tl.constexpr,
    NEARS: tl.constexpr,
    FAR: tl.constexpr,
):
    """Add the keys start .. stop-1 to the sums of their split; with WHOLE, merge a split where the next one begins.

    Without MASKED every row sees all of them. `sums` and `split_sums`: (total, maximum, acc).
    """
    k_cache, v_cache, table, kv_heads, kv_head = keys
    total, maximum, acc = sums
    split_total, split_max, split_acc = split_sums
    width: tl.constexpr = q_tile.shape[1]
    d = tl.arange(0, width)
    last = tl.maximum(stop - 1, 0)
    block = tl.load(table + tl.minimum(start + tl.arange(0, KEYS), last).to(tl.uint32) // BLOCK)
    for at in range(start, stop, KEYS):
        old_max, kept = split_max, 1.0
        fresh = at == next_split(at, NEAR, NEARS, FAR)
        if WHOLE and MASKED:  # before the products, which then end within this round; nor are there many rounds
            total, maximum, acc = merge(total, maximum, acc, split_total, _only_if(fresh, split_max), split_acc)
        key = at + tl.arange(0, KEYS)
        here = tl.minimum(key, last) if MASKED else key  # past the end: any key that exists, its weight is 0
        row = (block * BLOCK + (here.to(tl.uint32) % BLOCK).to(tl.int32)) * kv_heads + kv_head
        k_tile = tl.load(k_cache + (row.to(tl.int64) * width)[None, :] + d[:, None])
        v_tile = tl.load(v_cache + (row.to(tl.int64) * width)[:, None] + d[None, :])
        # The blocks of the next tile are looked up now, so that the loads of a tile never wait for another load.
        block = tl.load(table + tl.minimum(key + KEYS, last).to(tl.uint32) // BLOCK)
        score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision="ieee")
        if MASKED:
            if ONE_EACH:  # every row stands behind the last key
                visible = (key < stop)[None, :]
                if WINDOWED:
                    visible = visible & (key >= stop - window)[None, :]
            else:
                visible = key[None, :] <= position[:, None]
                if WINDOWED:
                    visible = visible & (key[None, :] > position[:, None] - window)
            score = tl.where(visible, score, float("-inf"))
        if WHOLE and not MASKED:  # behind the first product: the last one of the round before runs until here
            total, maximum, acc = merge(total, maximum, acc, split_total, _only_if(fresh, split_max), split_acc)
        if WHOLE:
            old_max, kept = tl.where(fresh, sink, split_max), tl.where(fresh, 0.0, 1.0)
        split_max = tl.maximum(old_max, tl.max(score, 1) * scale_log2)
        weight = tl.exp2(tl.fma(score, scale_log2, -split_max[:, None]))
        shrink = tl.exp2(old_max - split_max) * kept
        split_total = tl.fma(split_total, shrink, _sum_keys(weight, KEYS))
        split_acc = split_acc * shrink[:, None]
        split_acc = tl.dot(weight.to(q_tile.dtype), v_tile.to(q_tile.dtype), split_acc, input_precision="ieee")
    return (total, maximum, acc), (split_total, split_max, split_acc)


@triton.jit
def merge_parts(
    parts,
    splits,
    all_splits,
    sinks,
    out,
    query,
    kv_head,
    heads,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Merge one query's splits in order, with the arithmetic of a program that computed them all."""
    sums, maxima, totals = parts
    i = tl.arange(0, MERGE_ROWS)
    head = kv_head * GROUP + i
    live = i < GROUP
    d = tl.arange(0, HEAD_DIM)
    maximum = tl.load(sinks + head, mask=live, other=0.0).to(tl.float32) * LOG2_E
    total, acc = tl.full((MERGE_ROWS,), 1.0, tl.float32), tl.zeros((MERGE_ROWS, HEAD_DIM), tl.float32)
    for base in range(0, all_splits, AHEAD):
        for j in tl.static_range(AHEAD):
            at = (query * heads + head) * splits + base + j
            there = live & (base + j < all_splits)
            # Past the first-level cache, where lines may lie from before others wrote them.
            part_max = tl.load(maxima + at, mask=there, other=float("-inf"), cache_modifier=".cg")
            part_total = tl.load(totals + at, mask=there, other=0.0, cache_modifier=".cg")
            part_at = sums + at[:, None] * HEAD_DIM + d[None, :]
            part_acc = tl.load(part_at, mask=there[:, None], other=0.0, cache_modifier=".cg")
            total, maximum, acc = merge(total, maximum, acc, part_total, part_max, part_acc)
    out_at = out + (query * heads + head)[:, None] * HEAD_DIM + d[None, :]
    tl.store(out_at, (acc / total[:, None]).to(out.dtype.element_ty), mask=live[:, None])

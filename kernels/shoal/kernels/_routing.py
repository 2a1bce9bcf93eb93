"""Triton kernels of `routing`: integer top-k, counting sort without atomics, ordered combine."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH

_SORT_ROWS = 128  # rows of one block of the counting sort
_COMBINE_COLUMNS = 1024


def route(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    tokens, experts = logits.shape
    ids = torch.empty(tokens, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, k, dtype=torch.float32, device=logits.device)
    if tokens:
        _route_kernel[(tokens,)](
            logits,
            ids,
            weights,
            experts,
            K=k,
            K_PADDED=triton.next_power_of_2(k),
            EXPERTS=triton.next_power_of_2(experts),
            num_warps=1,
            **ROUND_EACH,
        )
    return ids, weights


@triton.jit
def _route_kernel(logits, ids, weights, experts, K: tl.constexpr, K_PADDED: tl.constexpr, EXPERTS: tl.constexpr):
    """One token. Value and id share one integer: the fp32 bits, made to order as integers do, above the negated id.

    So one integer maximum finds the largest value and, of equals, the lowest id.
    """
    token = tl.program_id(0)
    e = tl.arange(0, EXPERTS)
    x = tl.load(logits + token * experts + e, mask=e < experts, other=float("-inf"))
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0 equals +0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    left = (ordered.to(tl.int64) << 16) | (0xFFFF - e).to(tl.int64)
    left = tl.where(e < experts, left, -0x7FFFFFFFFFFFFFFF)

    j = tl.arange(0, K_PADDED)
    chosen = tl.full((K_PADDED,), float("-inf"), tl.float32)
    for i in tl.static_range(K):
        top = tl.max(left, 0)
        left = tl.where(left == top, -0x7FFFFFFFFFFFFFFF, left)
        tl.store(ids + token * K + i, 0xFFFF - (top & 0xFFFF).to(tl.int32))
        bits_top = (top >> 16).to(tl.int32)
        value = (bits_top ^ ((bits_top >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        chosen = tl.where(j == i, value, chosen)
    share = tl.exp(chosen - tl.max(chosen, 0))
    tl.store(weights + token * K + j, share / tl.sum(share, 0), mask=j < K)


def sort_by_expert(ids: Tensor, num_experts: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    rows = ids.shape[0]
    blocks = max(1, triton.cdiv(rows, _SORT_ROWS))
    padded = triton.next_power_of_2(num_experts)
    before = torch.empty(blocks, num_experts, dtype=torch.int32, device=ids.device)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=ids.device)
    order = torch.empty(rows, dtype=torch.int32, device=ids.device)
    constants = {"EXPERTS": padded, **ROUND_EACH}
    _count_kernel[(blocks,)](ids, before, rows, num_experts, ROWS=_SORT_ROWS, **constants)
    _scan_kernel[(1,)](before, offsets, blocks, num_experts, **constants)
    _place_kernel[(blocks,)](ids, before, offsets, order, rows, num_experts, ROWS=_SORT_ROWS, **constants)
    return order[: int(offsets[-1]) if count is None else count], offsets


@triton.jit
def _one_hot(ids, block, rows, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """(row numbers [ROWS], their ids, i32 [ROWS, EXPERTS] with a 1 where the row's id is the expert)"""
    r = block * ROWS + tl.arange(0, ROWS)
    row_ids = tl.load(ids + r, mask=r < rows, other=-1)
    return r, row_ids, (row_ids[:, None] == tl.arange(0, EXPERTS)[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["rows"])
def _count_kernel(ids, counts, rows, num_experts, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """counts[block, e]: rows of this block that belong to expert e."""
    block = tl.program_id(0)
    e = tl.arange(0, EXPERTS)
    _r, _row_ids, hot = _one_hot(ids, block, rows, EXPERTS, ROWS)
    tl.store(counts + block * num_experts + e, tl.sum(hot, 0), mask=e < num_experts)


@triton.jit(do_not_specialize=["blocks"])
def _scan_kernel(counts, offsets, blocks, num_experts, EXPERTS: tl.constexpr):
    """In place: counts[block, e] becomes the rows of e in earlier blocks. offsets: where each expert's rows start."""
    e = tl.arange(0, EXPERTS)
    inside = e < num_experts
    running = tl.zeros((EXPERTS,), tl.int32)
    for block in range(blocks):
        here = tl.load(counts + block * num_experts + e, mask=inside, other=0)
        tl.store(counts + block * num_experts + e, running, mask=inside)
        running += here
    tl.store(offsets + 1 + e, tl.cumsum(running, 0), mask=inside)
    tl.store(offsets, 0)


@triton.jit(do_not_specialize=["rows"])
def _place_kernel(ids, before, offsets, order, rows, num_experts, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """Each row goes to: its expert's start + earlier blocks' rows + earlier rows of this block. Stable."""
    block = tl.program_id(0)
    e = tl.arange(0, EXPERTS)
    r, row_ids, hot = _one_hot(ids, block, rows, EXPERTS, ROWS)
    start = tl.load(offsets + e, mask=e < num_experts, other=0)
    start += tl.load(before + block * num_experts + e, mask=e < num_experts, other=0)
    place = tl.sum((tl.cumsum(hot, 0) - 1 + start[None, :]) * hot, 1)
    tl.store(order + place, r, mask=(row_ids >= 0) & (r < rows))


def combine(rows: Tensor, weights: Tensor) -> Tensor:
    tokens, k, width = rows.shape
    out = torch.empty(tokens, width, dtype=rows.dtype, device=rows.device)
    if tokens:
        grid = (tokens, triton.cdiv(width, _COMBINE_COLUMNS))
        _combine_kernel[grid](rows, weights, out, width, K=k, COLUMNS=_COMBINE_COLUMNS, **ROUND_EACH)
    return out


@triton.jit
def _combine_kernel(rows, weights, out, width, K: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for j in tl.static_range(K):
        row = tl.load(rows + (token * K + j) * width + h, mask=h < width, other=0.0).to(tl.float32)
        product = row * tl.load(weights + token * K + j)
        total = product if j == 0 else total + product
    tl.store(out + token * width + h, total.to(out.dtype.element_ty), mask=h < width)

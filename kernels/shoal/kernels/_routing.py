"""Triton kernels of `routing`: integer top-k and ordered combine."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH

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


def combine(rows: Tensor, weights: Tensor, residual: Tensor | None = None) -> Tensor:
    tokens, k, width = rows.shape
    out = torch.empty(tokens, width, dtype=rows.dtype, device=rows.device)
    if tokens:
        grid = (tokens, triton.cdiv(width, _COMBINE_COLUMNS))
        _combine_kernel[grid](
            rows, weights, rows if residual is None else residual, out, width,
            K=k, RESIDUAL=residual is not None, COLUMNS=_COMBINE_COLUMNS, **ROUND_EACH,
        )  # fmt: skip
    return out


@triton.jit
def _combine_kernel(
    rows, weights, residual, out, width, K: tl.constexpr, RESIDUAL: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for j in tl.static_range(K):
        row = tl.load(rows + (token * K + j) * width + h, mask=h < width, other=0.0).to(tl.float32)
        product = row * tl.load(weights + token * K + j)
        total = product if j == 0 else total + product
    if RESIDUAL:
        total = tl.load(residual + token * width + h, mask=h < width, other=0.0).to(tl.float32) + total
    tl.store(out + token * width + h, total.to(out.dtype.element_ty), mask=h < width)

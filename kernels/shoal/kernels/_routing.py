"""Triton kernels of `routing`: integer top-k, and the ordered sum that ends a layer, with the next layer's norm."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH
from shoal.kernels._norm import normed_rows, padded

_COMBINE_COLUMNS = 1024


def route(logits: Tensor, k: int, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    tokens, experts = logits.shape
    ids = torch.empty(tokens, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, k, dtype=torch.float32, device=logits.device)
    if tokens:
        _route_kernel[(tokens,)](
            logits,
            logits if live is None else live,
            ids,
            weights,
            experts,
            SOME=live is not None,
            K=k,
            K_PADDED=triton.next_power_of_2(k),
            EXPERTS=triton.next_power_of_2(experts),
            num_warps=1,
            **ROUND_EACH,
        )
    return ids, weights


@triton.jit
def _route_kernel(
    logits, live, ids, weights, experts,
    SOME: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """One token. Value and id share one integer: the fp32 bits, made to order as integers do, above the negated id.

    So one integer maximum finds the largest value and, of equals, the lowest id.
    """
    token = tl.program_id(0)
    chooses = token < tl.load(live) if SOME else True
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
        expert = 0xFFFF - (top & 0xFFFF).to(tl.int32)
        tl.store(ids + token * K + i, tl.where(chooses, expert, -1) if SOME else expert)
        bits_top = (top >> 16).to(tl.int32)
        value = (bits_top ^ ((bits_top >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        chosen = tl.where(j == i, value, chosen)
    share = tl.exp(chosen - tl.max(chosen, 0))
    tl.store(weights + token * K + j, share / tl.sum(share, 0), mask=j < K)


def combine(rows: Tensor, weights: Tensor, residual: Tensor | None = None) -> Tensor:
    tokens, _, width = rows.shape
    out = torch.empty(tokens, width, dtype=rows.dtype, device=rows.device)
    if tokens:
        columns = {"COLUMNS": _COMBINE_COLUMNS, "LOG2": 0}
        _combine(rows, weights, residual, out, None, 0.0, None, triton.cdiv(width, _COMBINE_COLUMNS), columns)
    return out


def combine_normed(
    rows: Tensor, weights: Tensor, residual: Tensor | None, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    tokens, _, width = rows.shape
    out, normed = (torch.empty(tokens, width, dtype=rows.dtype, device=rows.device) for _ in range(2))
    if tokens:
        whole = padded(width)
        columns = {"COLUMNS": whole["WIDTH"], "LOG2": whole["LOG2"]}
        _combine(rows, weights, residual, out, norm, eps, normed, 1, columns)
    return out, normed


def _combine(
    rows: Tensor,
    weights: Tensor,
    residual: Tensor | None,
    out: Tensor,
    norm: Tensor | None,
    eps: float,
    normed: Tensor | None,
    parts: int,
    columns: dict[str, int],
) -> None:
    """Each row by `parts` programs, of `columns` each; where it is normed too, by one."""
    tokens, k, width = rows.shape
    _combine_kernel[(tokens, parts)](
        rows, weights, rows if residual is None else residual, out, rows if norm is None else norm,
        out if normed is None else normed, width, eps,
        K=k, RESIDUAL=residual is not None, NORM=norm is not None, **columns, **ROUND_EACH,
    )  # fmt: skip


@triton.jit(do_not_specialize=["eps"])
def _combine_kernel(
    rows, weights, residual, out, norm, normed, width, eps,
    K: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr, COLUMNS: tl.constexpr, LOG2: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = h < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for j in tl.static_range(K):
        row = tl.load(rows + (token * K + j) * width + h, mask=inside, other=0.0).to(tl.float32)
        product = row * tl.load(weights + token * K + j)
        total = product if j == 0 else total + product
    if RESIDUAL:
        total = tl.load(residual + token * width + h, mask=inside, other=0.0).to(tl.float32) + total
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + token * width + h, rounded, mask=inside)
    if NORM:  # of the row as it was stored, as another kernel would read it
        gain = tl.load(norm + h, mask=inside, other=0.0).to(tl.float32)
        result = normed_rows(rounded.to(tl.float32)[None, :], gain, width, eps, 1, COLUMNS, LOG2)
        tl.store(normed + token * width + h, tl.reshape(result, (COLUMNS,)).to(normed.dtype.element_ty), mask=inside)

"""Triton kernel of `norm`, and its arithmetic for kernels that hold whole rows already.

The squares of a row are added two by two in a fixed tree. How many threads and registers hold the row decides nothing,
so every kernel that says `normed_rows` gives the same bits.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH


def rms_norm(x: Tensor, weight: Tensor, eps: float, rows: Tensor | None = None) -> Tensor:
    width = x.shape[1]
    out = torch.empty(x.shape[0] if rows is None else rows.shape[0], width, dtype=x.dtype, device=x.device)
    if out.shape[0]:
        _rms_norm_kernel[(out.shape[0],)](
            x,
            x if rows is None else rows,
            weight,
            out,
            width,
            eps,
            GATHER=rows is not None,
            **padded(width),
            **ROUND_EACH,
        )
    return out


def padded(width: int) -> dict[str, int]:
    """The power of two that holds `width`, as the kernels want it."""
    log2 = (width - 1).bit_length()
    return {"WIDTH": 1 << log2, "LOG2": log2}


@triton.jit
def fold_sum(a, ROWS: tl.constexpr, WIDTH: tl.constexpr, LOG2: tl.constexpr):
    """Sum a [ROWS, WIDTH] over its second axis in an order that its layout does not change. WIDTH = 2^LOG2.

    Every step adds two numbers to one. Eight neighbours first, since one thread is likely to have loaded them.
    """
    for level in tl.static_range(LOG2):
        if level < 3:
            a = tl.sum(tl.reshape(a, (ROWS, WIDTH >> (level + 1), 2)), 2)
        else:
            a = tl.sum(tl.reshape(a, (ROWS, 2, WIDTH >> (level + 1))), 1)
    return tl.reshape(a, (ROWS,))


@triton.jit
def normed_rows(x, weight, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr, LOG2: tl.constexpr):
    """x fp32 [ROWS, WIDTH], zero from `width` on, and weight fp32 [WIDTH] -> fp32 [ROWS, WIDTH]."""
    mean_square = tl.math.div_rn(fold_sum(x * x, ROWS, WIDTH, LOG2), width * 1.0)
    inverse = tl.math.div_rn(1.0, tl.math.sqrt_rn(mean_square + eps))
    return x * inverse[:, None] * weight[None, :]


@triton.jit
def _rms_norm_kernel(x, rows, weight, out, width, eps, GATHER: tl.constexpr, WIDTH: tl.constexpr, LOG2: tl.constexpr):
    h = tl.arange(0, WIDTH)
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)  # a matrix of one row, for `normed_rows`
    source = tl.load(rows + row) if GATHER else row
    inside = (h < width)[None, :]
    values = tl.load(x + source[:, None] * width + h[None, :], mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + h, mask=h < width, other=0.0).to(tl.float32)
    normed = normed_rows(values, gain, width, eps, 1, WIDTH, LOG2)
    tl.store(out + row[:, None] * width + h[None, :], normed.to(out.dtype.element_ty), mask=inside)

"""Triton kernel of `norm`: one program per row."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows, width = x.shape
    out = torch.empty_like(x)
    if rows:
        _rms_norm_kernel[(rows,)](x, weight, out, width, eps, WIDTH=triton.next_power_of_2(width), **ROUND_EACH)
    return out


@triton.jit
def _rms_norm_kernel(x, weight, out, width, eps, WIDTH: tl.constexpr):
    h = tl.arange(0, WIDTH)
    inside = h < width
    base = tl.program_id(0).to(tl.int64) * width
    row = tl.load(x + base + h, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(row * row, 0) / width + eps)
    scaled = row * inverse * tl.load(weight + h, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + base + h, scaled.to(out.dtype.element_ty), mask=inside)

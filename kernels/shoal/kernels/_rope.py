"""Triton kernel of `rope`: one program turns all heads of one token, in place. And the rotation for other kernels."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH


def apply_rope_(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    tokens, q_heads, head_dim = q.shape
    k_heads = k.shape[1]
    if tokens:
        _rope_kernel[(tokens,)](
            q,
            k,
            positions,
            cos,
            sin,
            q_heads,
            k_heads,
            Q_HEADS=triton.next_power_of_2(q_heads),
            K_HEADS=triton.next_power_of_2(k_heads),
            HALF=head_dim // 2,
            HALF_PADDED=triton.next_power_of_2(head_dim // 2),
            **ROUND_EACH,
        )


@triton.jit
def turn(x, other, cos, sin, first):
    """x turned, all of one shape: `other` holds x's partners, `first` says whether x is of the first halves.

    Each number has the bits that `_rotate` gives it.
    """
    partner = other.to(tl.float32) * sin
    return (x.to(tl.float32) * cos + tl.where(first, -partner, partner)).to(x.dtype)


@triton.jit
def _rotate(x, token, heads, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr):
    """Turn x[token], [heads, 2 HALF], by angles whose cos and sin are [1, HALF_PADDED]."""
    head, d = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF_PADDED)[None, :]
    inside = (head < heads) & (d < HALF)
    at = x + (token.to(tl.int64) * heads + head) * (2 * HALF) + d
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(x.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (second * cos + first * sin).to(x.dtype.element_ty), mask=inside)


@triton.jit
def _rope_kernel(
    q,
    k,
    positions,
    cos,
    sin,
    q_heads,
    k_heads,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
):
    token = tl.program_id(0)
    d = tl.arange(0, HALF_PADDED)[None, :]
    at = tl.load(positions + token) * HALF + d
    c = tl.load(cos + at, mask=d < HALF, other=0.0)
    s = tl.load(sin + at, mask=d < HALF, other=0.0)
    _rotate(q, token, q_heads, c, s, Q_HEADS, HALF, HALF_PADDED)
    _rotate(k, token, k_heads, c, s, K_HEADS, HALF, HALF_PADDED)

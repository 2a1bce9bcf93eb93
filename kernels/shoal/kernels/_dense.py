"""Triton kernel of `dense`: tiles for decoding and for prompts, and the same bits from all of them.

The product is computed transposed: weights take the side on which tensor cores want 64 rows, tokens the side that may
be narrow. Whatever the tile, an element of the result is one chain of products over K, 16 at a time in order, begun at
zero; so it depends on its own row and its own weights alone, and K needs no split that would have to be the same
everywhere. Where a small batch must read weights as fast as memory gives them, what a split would be for, the work is
spread over more programs by leaving rows of the tensor cores' tile empty: they are not loaded, and multiplying zeros
costs nothing that a memory-bound kernel would miss.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, compute_dtype
from shoal.kernels.chips import Chip, chip_for

_GROUP = 8  # token tiles that are computed side by side while a weight tile is in the cache


@dataclass(frozen=True, slots=True)
class Tiling:
    """One program's part of a product. It decides the speed and no bit."""

    weights: int  # weight rows of the tensor cores' tile
    live: int  # how many of them one program has
    tokens: int
    k: int
    warps: int
    stages: int

    @property
    def stage_bytes(self) -> int:
        return (self.weights + self.tokens) * self.k * 2

    def programs(self, rows: int, n: int) -> int:
        return -(-n // self.live) * -(-rows // self.tokens)


# For prompts: the first that gives every multiprocessor a program.
_WIDE = Tiling(weights=128, live=128, tokens=256, k=64, warps=8, stages=4)
_SQUARE = Tiling(weights=128, live=128, tokens=128, k=64, warps=8, stages=4)
_LONG = Tiling(weights=64, live=64, tokens=128, k=64, warps=4, stages=4)
_ONE = Tiling(weights=64, live=64, tokens=64, k=64, warps=4, stages=2)


def tiling(rows: int, n: int, chip: Chip) -> Tiling:
    """The tile for `rows` tokens and `n` weight rows."""
    if chip.one_tile:
        return replace(_ONE, live=_narrow(16, n, chip).live if rows <= 64 else _ONE.live)
    if rows <= 64:
        return _narrow(max(16, triton.next_power_of_2(rows)), n, chip)
    wide, square = _deep(_WIDE, 1, chip), _deep(_SQUARE, 2, chip)
    if chip.from_memory and wide.programs(rows, n) >= chip.multiprocessors:
        return wide
    return square if square.programs(rows, n) >= chip.multiprocessors else _deep(_LONG, 2, chip)


def _narrow(tokens: int, n: int, chip: Chip) -> Tiling:
    """For at most 64 tokens: one wave of programs, each with an equal share of the weights and as much of them under
    way as memory holds. From 64 tokens on, reading these once per program costs more than idle multiprocessors do."""
    share = triton.cdiv(triton.cdiv(n, chip.multiprocessors), 8) * 8
    live = 64 if tokens == 64 else min(64, max(16, share))
    if triton.cdiv(n, live) <= chip.multiprocessors:
        return _deep(Tiling(64, live, tokens, k=128, warps=4, stages=10), 1, chip)
    return _deep(Tiling(64, live, tokens, k=64, warps=4, stages=10), 2, chip)


def _deep(tile: Tiling, programs: int, chip: Chip) -> Tiling:
    """`tile` with at most as many stages as `programs` on one multiprocessor have room for, and with twice the warps,
    and so the registers, where operands need some."""
    stages = max(2, min(tile.stages, chip.room(programs) // tile.stage_bytes))
    return replace(tile, stages=stages, warps=tile.warps if chip.from_memory else 8)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
    tile: Tiling | None = None,
) -> Tensor:
    rows, k = x.shape
    n = weight.shape[0]
    out = torch.empty(rows, n, dtype=out_dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tile = tile or tiling(rows, n, chip_for(x))
    # One axis, because the others may hold no more than 65,535 programs.
    _linear_kernel[(tile.programs(rows, n),)](
        x,
        weight,
        weight if bias is None else bias,
        out if residual is None else residual,
        out,
        rows,
        n,
        k,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        EVEN_K=k % tile.k == 0,
        COMPUTE=compute_dtype(x),
        LIVE=tile.live,
        TILE_T=tile.tokens,
        TILE_N=tile.weights,
        TILE_K=tile.k,
        GROUP=_GROUP,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **ROUND_EACH,
    )
    return out


@triton.jit
def product(
    x,
    weight,
    t,
    n,
    t_live,
    n_live,
    K,
    EVEN_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """weight[n] @ x[t].T -> fp32 [TILE_N, TILE_T], zero where n or t is not live: one chain over K per element."""
    k = tl.arange(0, TILE_K)
    w_at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    x_at = x + t[None, :].to(tl.int64) * K + k[:, None]
    acc = tl.zeros((TILE_N, TILE_T), tl.float32)
    for k0 in range(0, K, TILE_K):
        if EVEN_K:
            w_tile = tl.load(w_at, mask=n_live[:, None], other=0.0)
            x_tile = tl.load(x_at, mask=t_live[None, :], other=0.0)
        else:
            w_tile = tl.load(w_at, mask=n_live[:, None] & (k < K - k0)[None, :], other=0.0)
            x_tile = tl.load(x_at, mask=t_live[None, :] & (k < K - k0)[:, None], other=0.0)
        acc = tl.dot(w_tile.to(COMPUTE), x_tile.to(COMPUTE), acc, input_precision="ieee")
        w_at += TILE_K
        x_at += TILE_K
    return acc


@triton.jit(do_not_specialize=["T"])
def _linear_kernel(
    x,
    weight,
    bias,
    residual,
    out,
    T,
    N,
    K,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    LIVE: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out [T,N] = x [T,K] @ weight [N,K].T + bias [N] + residual [T,N]."""
    n_tiles, t_tiles = tl.cdiv(N, LIVE), tl.cdiv(T, TILE_T)
    group = tl.program_id(0) // (n_tiles * GROUP)
    within = tl.program_id(0) % (n_tiles * GROUP)
    height = tl.minimum(t_tiles - group * GROUP, GROUP)
    t = (group * GROUP + within % height) * TILE_T + tl.arange(0, TILE_T)
    row = tl.arange(0, TILE_N)
    n = within // height * LIVE + row
    t_live, n_live = t < T, (row < LIVE) & (n < N)

    acc = product(x, weight, t, n, t_live, n_live, K, EVEN_K, COMPUTE, TILE_T, TILE_N, TILE_K)
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0).to(tl.float32)[:, None]
    place = t[:, None].to(tl.int64) * N + n[None, :]
    inside = t_live[:, None] & n_live[None, :]
    result = tl.trans(acc)
    if RESIDUAL:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)

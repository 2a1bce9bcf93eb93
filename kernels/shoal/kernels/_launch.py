"""What every Triton launch here shares: how to compute under the interpreter, and which tile serves which rows."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Without contraction, what a kernel says is what is rounded: two kernels that say the same agree bit for bit. Given to
# every launch, since Triton's own default changes between versions.
ROUND_EACH = {"enable_fp_fusion": False}


def compute_dtype(x: torch.Tensor) -> tl.dtype:
    """The dtype of matrix products over x. The interpreter multiplies bf16 bit patterns as integers: fp32 there."""
    return tl.bfloat16 if x.dtype == torch.bfloat16 and not INTERPRETED else tl.float32


def max_tiles(rows: int, segments: int, tile: int) -> int:
    """The most tiles that `rows` rows, cut into `segments` runs, can need when no tile spans two runs.

    A run of n rows takes at most (n-1)/tile + 1 tiles. Known from shapes alone, so that no launch waits for the GPU;
    surplus programs find no rows and return.
    """
    runs = min(rows, segments)
    return (rows - runs) // tile + runs if rows else 0


@triton.jit
def tile_of(number, offsets, num_segments, SEGMENTS: tl.constexpr, TILE: tl.constexpr):
    """(segment, first row, end of the segment) of tile `number`; first == end for a surplus tile.

    offsets i32 [num_segments+1] cut the rows into segments; SEGMENTS is the power of two holding num_segments.
    """
    s = tl.arange(0, SEGMENTS)
    inside = s < num_segments
    start = tl.load(offsets + s, mask=inside, other=0)
    end = tl.load(offsets + s + 1, mask=inside, other=0)
    tiles = (end - start + TILE - 1) // TILE
    until = tl.cumsum(tiles, 0)
    segment = tl.sum((until <= number).to(tl.int32), 0)
    mine = s == segment
    first = tl.sum(tl.where(mine, start + (number - until + tiles) * TILE, 0), 0)
    last = tl.sum(tl.where(mine, end, 0), 0)
    return segment, first, last

"""Triton kernel of `moe_matmul`: weights are decoded in registers, where the tensor cores take them.

The product is computed transposed. Weights are the operand with 64 or more rows that may come from registers, so what
was decoded never travels through shared memory; tokens are the operand that may be narrow, so few of them waste little.
Programs find their work in a schedule that the GPU made; the host knows an upper bound from shapes alone.

Every tile shape adds the products of one output in one order: inputs 16 by 16, from the first to the last, into one
accumulator. So a row has the same bits in every batch, whichever tile its batch chose (`tests/gpu` holds a GPU to it).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, compute_dtype
from shoal.kernels._schedule import Schedule, schedule_tiles
from shoal.kernels.chips import MoeTile, chip_for
from shoal.kernels.fragments import FragmentExperts
from shoal.kernels.mxfp8 import Bf16Weights, Mxfp8Weights

GpuWeights = FragmentExperts | Mxfp8Weights | Bf16Weights
_FEW_PROGRAMS = 264  # two for each multiprocessor of a large GPU: with fewer, narrower tiles spread the weights better


def gate_up(
    x: Tensor,
    rows: Tensor,
    offsets: Tensor,
    w: GpuWeights,
    *,
    limit: float,
    alpha: float,
    schedule: Schedule | None = None,
) -> Tensor:
    out = torch.empty(rows.shape[0], w.out_features // 2, dtype=x.dtype, device=x.device)
    _launch(x, rows, offsets, w, out, None, schedule, limit=limit, alpha=alpha, gated=True)
    return out


def down(
    h: Tensor, offsets: Tensor, w: GpuWeights, *, places: Tensor | None = None, schedule: Schedule | None = None
) -> Tensor:
    out = torch.empty(h.shape[0], w.out_features, dtype=h.dtype, device=h.device)
    _launch(h, None, offsets, w, out, places, schedule, limit=0.0, alpha=0.0, gated=False)
    return out


def _launch(
    x: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    w: GpuWeights,
    out: Tensor,
    places: Tensor | None,
    schedule: Schedule | None,
    *,
    limit: float,
    alpha: float,
    gated: bool,
) -> None:
    if out.numel() == 0:
        return
    assert max(x.numel(), out.numel()) < 1 << 31, f"{x.shape[0]} and {out.shape[0]} rows are too many for one launch"
    schedule = schedule or schedule_tiles(offsets, out.shape[0])
    chip = chip_for(x)
    tile = chip.moe_tile(schedule.tile)
    programs = triton.cdiv(w.out_features, tile.n) * schedule.entries.shape[0]
    if programs < _FEW_PROGRAMS and chip.moe_narrow is not None and schedule.tile <= chip.moe_narrow.rows:
        tile = chip.moe_narrow
    weights, scales = _parts(w)
    grid = (triton.cdiv(w.out_features, tile.n), schedule.entries.shape[0])
    _moe_matmul_kernel[grid](
        x,
        offsets if rows is None else rows,
        offsets,
        schedule.entries,
        weights,
        weights if scales is None else scales,
        w.bias,
        out,
        offsets if places is None else places,
        w.out_features,
        w.in_features,
        limit,
        alpha,
        GATED=gated,
        GATHER=rows is not None,
        SCATTER=places is not None,
        FORMAT=_format(w),
        PAIRED=chip.bf16x2 if compute_dtype(x) == tl.bfloat16 else "",
        COMPUTE=compute_dtype(x),
        SCHEDULED=schedule.tile,
        **_constants(tile),
    )


def _parts(w: GpuWeights) -> tuple[Tensor, Tensor | None]:
    match w:
        case FragmentExperts():
            return w.blocks, w.scales
        case Mxfp8Weights():
            return w.codes, w.scales
        case Bf16Weights():
            return w.values, None


def _format(w: GpuWeights) -> str:
    return {FragmentExperts: "mxfp4", Mxfp8Weights: "mxfp8", Bf16Weights: "bf16"}[type(w)]


def _constants(tile: MoeTile) -> dict[str, object]:
    return {
        "TILE_N": tile.n, "TILE_K": tile.k, "num_warps": tile.warps, "num_stages": tile.stages, **ROUND_EACH,
    }  # fmt: skip


@triton.jit
def _scaled_pairs(pairs, scales, COMPUTE: tl.constexpr, PAIRED: tl.constexpr):
    """Two bf16 numbers in each word of `pairs` (i32), times the bf16 power of two in both halves of `scales` (i32).

    -> the products, exact, in a new last dimension of 2. The numbers are 2^126 too small; the scales mend that.
    """
    if PAIRED == "mul":
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 p; mul.rn.bf16x2 p, $2, $3; mov.b32 {$0, $1}, p; }",
            "=h,=h,r,r",
            [pairs, scales],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=1,
        )
    elif PAIRED == "fma":  # before Hopper there is no other bf16x2 product: times scale, minus zero
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 p, z; mov.b32 z, 0x80008000; fma.rn.bf16x2 p, $2, $3, z; mov.b32 {$0, $1}, p; }",
            "=h,=h,r,r",
            [pairs, scales],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=1,
        )
    else:  # a bf16 number is the upper half of the fp32 number of the same value
        factor = (scales << 16).to(tl.float32, bitcast=True)
        low = ((pairs << 16).to(tl.float32, bitcast=True) * factor).to(COMPUTE)
        high = ((pairs & 0xFFFF0000).to(tl.float32, bitcast=True) * factor).to(COMPUTE)
    return tl.join(low, high)


@triton.jit
def _fragments(
    blocks, scales, slab, depth, SLABS, DEPTH, N: tl.constexpr, K: tl.constexpr, COMPUTE: tl.constexpr,
    PAIRED: tl.constexpr,
):  # fmt: skip
    """MXFP4 weights [64 N, 64 K] decoded: slabs `slab` .. of one expert's blocks and scales, inputs from 64 `depth` on.

    Order: `fragments`. Slabs and inputs that are not there are zero.
    """
    n, k = slab + tl.arange(0, N), depth + tl.arange(0, K)
    at = n[:, None, None] * DEPTH + k[None, :, None]
    inside = (n < SLABS)[:, None, None] & (k < DEPTH)[None, :, None]
    words = tl.load(blocks + at * 512 + tl.arange(0, 512)[None, None, :], mask=inside, other=0)
    bytes = tl.load(scales + at * 128 + tl.arange(0, 128)[None, None, :], mask=inside, other=0)
    words = words.reshape(N, K, 4, 8, 4, 2, 2).to(tl.uint32, bitcast=True)
    power = (bytes.to(tl.uint32) * 0x00800080).reshape(N, K, 4, 8, 1, 2, 2)
    power = tl.broadcast_to(power, (N, K, 4, 8, 4, 2, 2))
    # Sign and three bits of every code to where bf16 has them: bits 15 and 8..6 of each half.
    p0 = words & 0x81C081C0
    p1 = ((words << 2) & 0x80008000) | ((words << 3) & 0x01C001C0)
    p2 = (words << 6) & 0x81C081C0
    p3 = ((words << 1) & 0x80008000) | ((words >> 4) & 0x01C001C0)
    first = tl.join(_scaled_pairs(p0, power, COMPUTE, PAIRED), _scaled_pairs(p1, power, COMPUTE, PAIRED))
    second = tl.join(_scaled_pairs(p2, power, COMPUTE, PAIRED), _scaled_pairs(p3, power, COMPUTE, PAIRED))
    values = tl.join(first, second)  # slab, depth, unit, r, c, half, word, odd, pair & 1, pair >> 1
    return values.permute(0, 2, 5, 3, 1, 6, 9, 8, 4, 7).reshape(N * 64, K * 64)


@triton.jit
def _plain(weights, scales, row, k, N, K, FORMAT: tl.constexpr, COMPUTE: tl.constexpr):
    """MXFP8 or bf16 weights [rows, k] of one expert, as published; zero where there are none."""
    inside = (row < N)[:, None] & (k < K)[None, :]
    values = tl.load(weights + row[:, None].to(tl.int64) * K + k[None, :], mask=inside, other=0)
    if FORMAT == "bf16":
        return values.to(COMPUTE)
    # A code's seven bits become the lowest exponent and highest mantissa bits of a number 2^120 too small.
    code = values.to(tl.uint32)
    small = (((code & 0x80) << 24) | ((code & 0x7F) << 20)).to(tl.float32, bitcast=True)
    scale = tl.load(scales + row[:, None].to(tl.int64) * (K // 32) + k[None, :] // 32, mask=inside, other=0)
    return (small * ((scale.to(tl.uint32) + 120) << 23).to(tl.float32, bitcast=True)).to(COMPUTE)


@triton.jit
def _tile(schedule, offsets, ROWS: tl.constexpr):
    """(expert, rows, which of them are there) of this program's tile.

    Read anew where the sums are stored: kept since the beginning, they would take registers that the sums need.
    """
    entry = tl.load(schedule + tl.program_id(1), volatile=True)
    expert = (entry >> 16).to(tl.int64)
    r = tl.load(offsets + expert) + (entry & 0xFFFF) * ROWS + tl.arange(0, ROWS)
    return expert, r, r < tl.load(offsets + expert + 1)


@triton.jit
def _fragment_rows(N: tl.constexpr):
    """Which of N outputs each row of a product is: of sixteen, the even ones come first (see `fragments`)."""
    p = tl.arange(0, N)
    return p // 16 * 16 + p % 8 * 2 + p // 8 % 2


@triton.jit(do_not_specialize=["limit", "alpha"])
def _moe_matmul_kernel(
    x,
    rows,
    offsets,
    schedule,
    weights,
    scales,
    bias,
    out,
    places,
    N,
    K,
    limit,
    alpha,
    GATED: tl.constexpr,
    GATHER: tl.constexpr,
    SCATTER: tl.constexpr,
    FORMAT: tl.constexpr,
    PAIRED: tl.constexpr,
    COMPUTE: tl.constexpr,
    SCHEDULED: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """SCHEDULED rows of one expert times TILE_N of its weight rows, which lie in fragment order (see `fragments`)."""
    if tl.load(schedule + tl.program_id(1)) < 0:
        return
    expert, r, live = _tile(schedule, offsets, SCHEDULED)
    source = tl.load(rows + r, mask=live, other=0) if GATHER else tl.where(live, r, 0)
    at = source * K  # 32 bits do: the launcher sees to it
    wanted = live if SCHEDULED <= 32 else tl.full((SCHEDULED,), 1, tl.int1)  # a mask costs more than some idle rows
    SLABS, DEPTH = (N + 63) // 64, (K + 63) // 64
    first = tl.program_id(0) * TILE_N

    acc = tl.zeros((TILE_N, SCHEDULED), tl.float32)
    for k0 in range(0, K, TILE_K):
        k = k0 + tl.arange(0, TILE_K)
        x_tile = tl.load(x + at[:, None] + k[None, :], mask=wanted[:, None] & (k < K)[None, :], other=0.0).to(COMPUTE)
        if FORMAT == "mxfp4":
            w_tile = _fragments(
                weights + expert * SLABS * DEPTH * 512,
                scales + expert * SLABS * DEPTH * 128,
                first // 64,
                k0 // 64,
                SLABS,
                DEPTH,
                TILE_N // 64,
                TILE_K // 64,
                COMPUTE,
                PAIRED,
            )
        else:
            row = first + _fragment_rows(TILE_N)
            w_tile = _plain(weights + expert * N * K, scales + expert * N * (K // 32), row, k, N, K, FORMAT, COMPUTE)
        acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")

    expert, r, live = _tile(schedule, offsets, SCHEDULED)
    row = first + _fragment_rows(TILE_N)
    acc += tl.load(bias + expert * N + row, mask=row < N, other=0.0).to(tl.float32)[:, None]
    halves = acc.reshape(TILE_N // 16, 2, 8, SCHEDULED)
    if GATED:
        gate, up = tl.split(halves.permute(0, 2, 3, 1))
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        result = (gate / (1.0 + tl.exp(-alpha * gate)) * (up + 1.0)).reshape(TILE_N // 2, SCHEDULED)
        column, width = first // 2 + tl.arange(0, TILE_N // 2), N // 2
    else:
        result = halves.permute(0, 2, 1, 3).reshape(TILE_N, SCHEDULED)
        column, width = first + tl.arange(0, TILE_N), N
    to = tl.load(places + r, mask=live, other=0) if SCATTER else r
    tl.store(
        out + (to * width)[None, :] + column[:, None],
        result.to(out.dtype.element_ty),
        mask=live[None, :] & (column < width)[:, None],
    )

"""Launches of the experts' kernels at the shapes of gpt-oss, for compiling ahead of time."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels import _moe_matmul, _routing, _schedule
from shoal.kernels._moe_matmul import GpuWeights
from shoal.kernels._schedule import Schedule
from shoal.kernels.chips import Chip
from shoal.kernels.fragments import FragmentExperts
from shoal.kernels.mxfp8 import Bf16Weights, Mxfp8Weights

HIDDEN, EXPERTS, TOP_K = 2880, 32, 4


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int32)


def permuted(rows: int) -> FragmentExperts:
    slabs = -(-rows // 64)
    return FragmentExperts(
        ints(EXPERTS, slabs, 45, 512), meta(EXPERTS, slabs, 45, 128, dtype=torch.uint8), meta(EXPERTS, rows), HIDDEN
    )


def other_formats(rows: int) -> list[GpuWeights]:
    byte = torch.uint8
    return [
        Mxfp8Weights(meta(EXPERTS, rows, HIDDEN, dtype=byte), meta(EXPERTS, rows, 90, dtype=byte), meta(EXPERTS, rows)),
        Bf16Weights(meta(EXPERTS, rows, HIDDEN), meta(EXPERTS, rows)),
    ]


def launch_moe(chip: Chip) -> None:
    """Both projections on every tile of the chip; the other formats on the lowest; the orders of few and of many."""
    for tile in chip.moe_tiles:
        many = 4096 if tile is not chip.moe_narrow else 1
        project(Schedule(ints(many), tile.rows), permuted(2 * HIDDEN), permuted(HIDDEN))
    for up, down in zip(other_formats(2 * HIDDEN), other_formats(HIDDEN), strict=True):
        project(Schedule(ints(4096), chip.moe[0].rows), up, down)
    for tokens in (1, 16, 64, 2048):
        loads = meta(EXPERTS, dtype=torch.int64)
        _schedule.arrange(ints(tokens, TOP_K), ints(EXPERTS), loads)
    logits = meta(64, EXPERTS, dtype=torch.float32)
    _routing.route(logits, TOP_K)
    _routing.route(logits, TOP_K, ints(1))
    rows, weights = meta(64, TOP_K, HIDDEN), meta(64, TOP_K, dtype=torch.float32)
    _routing.combine(rows, weights)
    _routing.combine(rows, weights, meta(64, HIDDEN))
    _routing.combine_normed(rows, weights, meta(64, HIDDEN), meta(HIDDEN), 1e-5)


def project(schedule: Schedule, up: GpuWeights, down: GpuWeights) -> None:
    rows, offsets = ints(256), ints(EXPERTS + 1)
    _moe_matmul.gate_up(meta(64, HIDDEN), rows, offsets, up, limit=7.0, alpha=1.702, schedule=schedule)
    _moe_matmul.down(meta(256, HIDDEN), offsets, down, places=rows, schedule=schedule)

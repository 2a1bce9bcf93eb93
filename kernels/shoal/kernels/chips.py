"""The one table of GPUs: what each kind has, and with which tiles the Triton kernels run on it.

A tile decides the speed and no bit, except where `one_tile` says so.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class MoeTile:
    """How `moe_matmul` cuts its work: rows of tokens, weight rows, inputs per step; warps and stages of a program."""

    rows: int
    n: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """How `attention` does: keys of a step, its stages, rows (queries times heads) of a prompt's tile at most, and
    warps for every 64 of them, where one program has a context to itself and where several share it."""

    keys: int
    stages: int
    rows: int
    warps: int = 4
    warps_sharing: int = 4


@dataclass(frozen=True, slots=True)
class Chip:
    """One kind of GPU. `moe` is in rising order of rows; `moe_narrow` takes the place of a tile of as few rows when
    there are too few programs to occupy the chip. `_dense` makes its tiles from what the chip has."""

    name: str
    multiprocessors: int
    shared_bytes: int  # that one program may use
    moe: tuple[MoeTile, ...]
    attention: AttentionTile
    moe_narrow: MoeTile | None = None
    bf16x2: str = "mul"  # how two bf16 are multiplied at once, "" for not at all
    from_memory: bool = False  # whether its tensor cores read shared memory; else operands need registers
    one_tile: bool = False  # whether its matrix instructions sum in an order that depends on the tile

    def room(self, programs: int) -> int:
        """Shared memory for each of `programs` on one multiprocessor; every one costs a kibibyte besides."""
        return (self.shared_bytes + 1024) // programs - 1024

    def moe_height(self, rows: int, experts: int) -> int:
        """Rows of a tile when `rows` rows go to `experts` experts: the power of two that holds twice the mean, so that
        an expert's weights are seldom read twice; within the table."""
        want = 1 << max(2 * rows // max(experts, 1) - 1, 0).bit_length()
        return next((tile.rows for tile in self.moe if tile.rows >= want), self.moe[-1].rows)

    def moe_tile(self, rows: int) -> MoeTile:
        return next(tile for tile in self.moe if tile.rows == rows)

    @property
    def moe_tiles(self) -> tuple[MoeTile, ...]:
        """All of them."""
        return self.moe if self.moe_narrow is None else (*self.moe, self.moe_narrow)


KIB = 1024
_SMALL = tuple(MoeTile(rows, 64, 64, 4, 3) for rows in (16, 32, 64))  # for mma.sync: decoded weights stay in registers
_TALL = AttentionTile(keys=64, stages=3, rows=128)

CHIPS = {
    chip.name: chip
    for chip in (
        # Ampere: A100. Ada: L40S and its like, also consumer Ampere's memory (which the driver tells, as of any chip).
        Chip("sm80", 108, 163 * KIB, _SMALL, _TALL, bf16x2="fma"),
        Chip("sm89", 142, 99 * KIB, _SMALL, _TALL, bf16x2="fma"),
        # Hopper (wgmma with weights from registers). 128 and 256 weight rows are 2 blocks of 64 per warp group, 1 of 4.
        Chip(
            "sm90",
            132,
            227 * KIB,
            (
                MoeTile(16, 128, 128, 4, 4),
                MoeTile(32, 128, 128, 4, 4),
                MoeTile(64, 128, 128, 4, 3),
                MoeTile(128, 256, 128, 16, 3),
            ),
            AttentionTile(keys=128, stages=3, rows=128),  # its registers hold the most scores
            moe_narrow=MoeTile(16, 64, 256, 4, 3),
            from_memory=True,
        ),
        # Blackwell, data centre (tcgen05) and workstation (mma.sync).
        Chip(
            "sm100",
            148,
            227 * KIB,
            tuple(MoeTile(rows, 128, 128, 4, 3) for rows in (16, 32, 64, 128)),
            AttentionTile(keys=64, stages=3, rows=64, warps=8),
            from_memory=True,
        ),
        Chip("sm120", 188, 99 * KIB, _SMALL, _TALL),
        # AMD's MI300X: one tile only, since the order of its matrix instructions' sums depends on the tile.
        Chip("gfx942", 304, 64 * KIB, (MoeTile(32, 64, 64, 4, 2),), replace(_TALL, stages=2), bf16x2="", one_tile=True),
    )
}

WITHOUT_GPU = CHIPS["sm90"]
"""Whose entry tensors get that live on no GPU: the interpreter's, and those of kernels compiled ahead of time."""


def chip_for(x: torch.Tensor) -> Chip:
    """The chip that serves tensors living where `x` lives."""
    return _chip(x.device) if x.device.type == "cuda" else WITHOUT_GPU


def kind_of(major: int, minor: int) -> str:
    """The name under which a compute capability of NVIDIA's is served: its own, or the nearest below."""
    known = sorted(int(name[2:]) for name in CHIPS if name.startswith("sm"))
    return f"sm{max((number for number in known if number <= 10 * major + minor), default=known[0])}"


@functools.cache
def _chip(device: torch.device) -> Chip:
    """The table's entry with what the driver says that this very chip has."""
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    amd = torch.version.hip is not None
    entry = CHIPS["gfx942" if amd else kind_of(*torch.cuda.get_device_capability(index))]
    found = driver.active.utils.get_device_properties(index)
    return replace(entry, multiprocessors=found["multiprocessor_count"], shared_bytes=found["max_shared_mem"])

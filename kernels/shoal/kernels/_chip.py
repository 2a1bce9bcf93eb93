"""What a launcher may know of the chip that it launches on: how many programs run at once, and in how much memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Chip:
    multiprocessors: int
    shared_bytes: int  # that one program may use
    from_memory: bool = True  # whether its tensor cores read shared memory; else operands need registers
    one_tile: bool = False  # whether its matrix instructions sum in an order that depends on the tile

    def room(self, programs: int) -> int:
        """Shared memory for each of `programs` on one multiprocessor; every one costs a kibibyte besides."""
        return (self.shared_bytes + 1024) // programs - 1024


KNOWN = {
    "sm80": Chip(108, 163 * 1024, from_memory=False),
    "sm90": Chip(132, 227 * 1024),
    "sm100": Chip(148, 227 * 1024),
    "sm120": Chip(188, 99 * 1024, from_memory=False),
    "gfx942": Chip(304, 64 * 1024, from_memory=False, one_tile=True),
}
STAND_IN = "sm90"
"""The chip of tensors that are on no GPU: in the interpreter and while compiling ahead of time."""


def chip_of(device: torch.device) -> Chip:
    return _chip(device) if device.type == "cuda" else KNOWN[STAND_IN]


@functools.cache
def _chip(device: torch.device) -> Chip:
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    found = driver.active.utils.get_device_properties(index)
    amd = torch.version.hip is not None
    from_memory = not amd and torch.cuda.get_device_capability(index)[0] in (9, 10)
    return Chip(found["multiprocessor_count"], found["max_shared_mem"], from_memory, one_tile=amd)

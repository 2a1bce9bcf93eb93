"""What a launcher may know of the chip that it launches on: how many programs run at once, and in how much memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Chip:
    multiprocessors: int
    shared_bytes: int  # that one program may use
    one_tile: bool = False  # whether its matrix instructions sum in an order that depends on the tile (AMD)

    def room(self, programs: int) -> int:
        """Shared memory for each of `programs` on one multiprocessor; every one costs a kibibyte besides."""
        return (self.shared_bytes + 1024) // programs - 1024


STAND_IN = Chip(multiprocessors=132, shared_bytes=227 * 1024)
"""Hopper's, for tensors that are on no GPU: in the interpreter and while compiling ahead of time."""


@functools.cache
def chip_of(device: torch.device) -> Chip:
    if device.type != "cuda":
        return STAND_IN
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    properties = driver.active.utils.get_device_properties(index)
    return Chip(properties["multiprocessor_count"], properties["max_shared_mem"], torch.version.hip is not None)

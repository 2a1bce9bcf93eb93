"""Weights in the order in which the native kernels read them: sixteen rows side by side (see src/packing.cpp).

A model packs its weights once, when it loads them; the operations also take unpacked ones and pack them at every call.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LANES, STEP = 16, 32  # weight rows side by side; inputs per step


def padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A dense weight [rows, inputs], packed: bf16 [rows up to 16s, inputs up to 32s], the added ones zero."""

    data: Tensor
    rows: int
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight, as if it were not packed."""
        return self.rows, self.inputs


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """One projection of a worker's experts, packed: blocks u8 [E, N up to 16s, G, 16], scales u8 [E, N up to 16s, G],
    bias bf16 [E,N] as published."""

    blocks: Tensor
    scales: Tensor
    bias: Tensor
    int8: bool = False
    """Whether activations are rounded to 8 bits, 32 sharing a scale, before they meet these weights: less exact."""

    @property
    def num_experts(self) -> int:
        return self.bias.shape[0]

    @property
    def out_features(self) -> int:
        return self.bias.shape[1]

    @property
    def in_features(self) -> int:
        return self.blocks.shape[2] * STEP

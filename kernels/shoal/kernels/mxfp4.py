"""MXFP4: 32 numbers of 4 bits (E2M1) sharing one power of two (E8M0), as the published checkpoints store experts.

Source: OCP Microscaling Formats (MX) Specification 1.0. A byte holds two elements, the even one in the low nibble.
A code is sign (bit 3), two exponent bits, one mantissa bit; a scale byte s stands for 2^(s-127), 255 for NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32  # elements that share a scale
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_MAX_EXPONENT = 2  # of E2M1: its largest power of two is 4
# Midpoints between neighbouring magnitudes. A tie goes to the even code: down at the first, up at the second kind.
_TIES_DOWN = (0.25, 1.25, 2.5, 5.0)
_TIES_UP = (0.75, 1.75, 3.5)


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One projection of a worker's experts, packed: blocks u8 [E,N,G,16], scales u8 [E,N,G], bias bf16 [E,N]."""

    blocks: Tensor
    scales: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        experts, rows, groups, packed = self.blocks.shape
        assert packed == GROUP // 2, f"a block is 16 bytes, found {packed}"
        assert self.scales.shape == (experts, rows, groups), f"scales {tuple(self.scales.shape)}"
        assert self.bias.shape == (experts, rows), f"bias {tuple(self.bias.shape)}"
        assert self.blocks.dtype == self.scales.dtype == torch.uint8, "blocks and scales are bytes"

    @property
    def num_experts(self) -> int:
        return self.blocks.shape[0]

    @property
    def out_features(self) -> int:
        return self.blocks.shape[1]

    @property
    def in_features(self) -> int:
        return self.blocks.shape[2] * GROUP


def quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """Round w [..., K] (any float dtype, finite, read as fp32) to (blocks u8 [..., K/32, 16], scales u8 [..., K/32]).

    The scale is the largest power of two not above the group's largest magnitude, divided by 4; elements round to
    the nearest code, ties to even, and saturate at 6 (OCP MX 1.0, section 6.3). A group of zeros has scale byte 0.
    Raises ValueError if K is no multiple of 32 or a number is not finite.
    """
    if w.shape[-1] % GROUP:
        raise ValueError(f"the last dimension must be a multiple of {GROUP}, found {w.shape[-1]}")
    groups = w.float().reshape(*w.shape[:-1], w.shape[-1] // GROUP, GROUP)
    largest = groups.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("MXFP4 holds finite numbers only, found inf or NaN")
    exponent = torch.frexp(largest).exponent - 1  # floor(log2), exactly
    exponent = torch.where(largest > 0, exponent - _MAX_EXPONENT, -127).clamp(-127, 127)
    magnitude = torch.ldexp(groups.double().abs(), -exponent.unsqueeze(-1))
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for midpoint in _TIES_DOWN:
        code += magnitude > midpoint
    for midpoint in _TIES_UP:
        code += magnitude >= midpoint
    code |= torch.signbit(groups).to(torch.uint8) << 3
    blocks = code[..., 0::2] | (code[..., 1::2] << 4)
    return blocks.contiguous(), (exponent + 127).to(torch.uint8)


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Decode (blocks u8 [..., G, 16], scales u8 [..., G]) to `dtype` [..., 32 G].

    Every MXFP4 number is exact in bf16, fp32 and fp64, save that bf16 and fp32 end at 2^128: above it, inf. A scale of
    255 gives NaN, as the specification says; such a file is refused when it is opened.
    """
    assert blocks.shape[:-1] == scales.shape, f"blocks {tuple(blocks.shape)}, scales {tuple(scales.shape)}"
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = torch.tensor(VALUES, dtype=wide, device=blocks.device)
    codes = torch.stack((blocks & 0xF, blocks >> 4), dim=-1).flatten(-2)
    factor = torch.exp2(torch.arange(256, dtype=torch.float64, device=blocks.device) - 127.0)
    factor[255] = torch.nan
    values = table[codes.int()] * factor.to(wide)[scales.int()].unsqueeze(-1)
    return values.flatten(-2).to(dtype)

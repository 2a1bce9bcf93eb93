"""MXFP8 and bf16 experts: what the grouped matmuls read besides MXFP4.

Source: OCP Microscaling Formats (MX) Specification 1.0; elements are E4M3 (OCP 8-bit floating point 1.0): sign, four
exponent bits of bias 7, three mantissa bits, no infinities, largest 448; 32 share a scale byte s for 2^(s-127).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.mxfp4 import GROUP

_MAX_EXPONENT = 8  # of E4M3: its largest power of two is 256
LARGEST_SCALE = 134  # the kernel folds a factor of 2^120 into the scale, which then must stay a bf16 number


@dataclass(frozen=True, slots=True)
class Mxfp8Weights:
    """One projection of a worker's experts: codes u8 [E,N,K] (E4M3), scales u8 [E,N,K/32], bias bf16 [E,N]."""

    codes: Tensor
    scales: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        experts, rows, inputs = self.codes.shape
        assert inputs % GROUP == 0, f"{inputs} inputs are no multiple of {GROUP}"
        assert self.scales.shape == (experts, rows, inputs // GROUP), f"scales {tuple(self.scales.shape)}"
        assert self.bias.shape == (experts, rows), f"bias {tuple(self.bias.shape)}"
        assert self.codes.dtype == self.scales.dtype == torch.uint8, "codes and scales are bytes"

    @property
    def num_experts(self) -> int:
        return self.codes.shape[0]

    @property
    def out_features(self) -> int:
        return self.codes.shape[1]

    @property
    def in_features(self) -> int:
        return self.codes.shape[2]


@dataclass(frozen=True, slots=True)
class Bf16Weights:
    """One projection of a worker's experts, not quantised: values bf16 [E,N,K], bias bf16 [E,N]."""

    values: Tensor
    bias: Tensor

    @property
    def num_experts(self) -> int:
        return self.values.shape[0]

    @property
    def out_features(self) -> int:
        return self.values.shape[1]

    @property
    def in_features(self) -> int:
        return self.values.shape[2]


def quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """Round w [..., K] (any float dtype, finite, read as fp32) to (codes u8 [..., K], scales u8 [..., K/32]).

    The scale is the largest power of two not above the group's largest magnitude, divided by 256; elements round to
    the nearest code, ties to even, and saturate at 448 (OCP MX 1.0, section 6.3). A group of zeros has scale byte 0.
    Raises ValueError if K is no multiple of 32, a number is not finite, or a scale is above 2^7.
    """
    if w.shape[-1] % GROUP:
        raise ValueError(f"the last dimension must be a multiple of {GROUP}, found {w.shape[-1]}")
    groups = w.float().reshape(*w.shape[:-1], w.shape[-1] // GROUP, GROUP)
    largest = groups.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("MXFP8 holds finite numbers only, found inf or NaN")
    exponent = torch.frexp(largest).exponent - 1  # floor(log2), exactly
    exponent = torch.where(largest > 0, exponent - _MAX_EXPONENT, -127).clamp(min=-127)
    if bool((exponent > LARGEST_SCALE - 127).any()):
        raise ValueError(f"a scale above 2^{LARGEST_SCALE - 127} is not served")
    scaled = torch.ldexp(groups.double(), -exponent.unsqueeze(-1)).clamp(-448.0, 448.0)
    codes = scaled.float().to(torch.float8_e4m3fn).view(torch.uint8)
    return codes.reshape(w.shape).contiguous(), (exponent + 127).to(torch.uint8)


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Decode (codes u8 [..., K], scales u8 [..., K/32]) to `dtype` [..., K]; exact in bf16 from scales of 2^-124 up."""
    assert codes.shape[:-1] == scales.shape[:-1], f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)}"
    values = codes.view(torch.float8_e4m3fn).double().reshape(*scales.shape, GROUP)
    return torch.ldexp(values, scales.int().unsqueeze(-1) - 127).flatten(-2).to(dtype)

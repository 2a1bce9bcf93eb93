"""MXFP4 experts in the order in which a GPU's matrix unit holds them: permuted once, at load, never while serving.

A warp computes 16 weight rows times 16 inputs at a time, and fixes which thread holds which weight: thread 4r + c has
rows r and r + 8, inputs 2c, 2c + 1, 2c + 8 and 2c + 9 (PTX ISA, mma.m16n8k16 and wgmma, the fragment of A). So weights
lie in units of 16 rows by 64 inputs, 512 bytes, in which the 16 bytes that one thread needs are neighbours: one load
each, a warp reads whole lines, and nothing is exchanged between threads before the product.

    blocks i32 [E, N/64, K/64, 4 units * 8 r * 4 c * 2 halves * 2 words]     scales u8 [E, N/64, K/64, 4 * 8 * 2 * 2]

* A word holds eight codes, inputs 2c + {0, 1, 8, 9, 16, 17, 24, 25} of one group of 32. Even inputs are in its low
  half, odd ones in its high half, so that two codes at a time become two bf16 numbers by shifts and masks
  (`_SIGN_BITS`).
* Of a unit's 16 rows, row 2r is in half 0 and row 2r + 1 in half 1 of thread row r: gate and up of one feature, or two
  neighbouring outputs, end in the same thread.
* A scale byte s is kept as s + 126: the codes become numbers that are 2^126 too small, and one product mends both.
  Hence s <= 128; larger ones (weights above 12) are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.mxfp4 import GROUP, ExpertWeights

ROWS, INPUTS = 64, 64  # of one slab: 4 units, 2 KiB of codes
LARGEST_SCALE = 128
_REBASE = 126
LAYOUT_VERSION = 1

# Where the codes of a word's four pairs have their sign and their three other bits, in each half of 16 bits. bf16 has
# them at 15 and 8..6: pair 0 is there, the others come there by shifts (`_decode_pairs` of the kernel).
_SIGN_BITS = (15, 13, 9, 14)
_LOW_BITS = (6, 3, 0, 10)


@dataclass(frozen=True, slots=True)
class FragmentExperts:
    """One projection of a worker's experts, permuted. bias bf16 [E,N] as published; `in_features` K before padding."""

    blocks: Tensor
    scales: Tensor
    bias: Tensor
    in_features: int

    @property
    def num_experts(self) -> int:
        return self.blocks.shape[0]

    @property
    def out_features(self) -> int:
        return self.bias.shape[1]


def permute(w: ExpertWeights) -> FragmentExperts:
    """The experts in fragment order; rows and inputs are padded to multiples of 64 with zeros.

    Raises ValueError if a scale is above 2^1, which this order cannot hold.
    """
    experts, rows, groups, _ = w.blocks.shape
    slabs, depth = -(-rows // ROWS), -(-groups * GROUP // INPUTS)
    if w.scales.numel() and (largest := int(w.scales.max())) > LARGEST_SCALE:
        raise ValueError(
            f"a scale of 2^{largest - 127} is above 2^{LARGEST_SCALE - 127}, the largest that a GPU serves"
        )
    shape = (experts, slabs * ROWS, depth * 2)
    blocks, scales = w.blocks.new_zeros(*shape, 16), w.scales.new_zeros(shape)
    blocks[:, :rows, :groups], scales[:, :rows, :groups] = w.blocks, w.scales
    # codes[e, slab, unit, r, half, depth, word, pair, c, odd]: input 64 depth + 32 word + 8 pair + 2 c + odd
    codes = torch.stack((blocks & 0xF, blocks >> 4), dim=-1).view(experts, slabs, 4, 8, 2, depth, 2, 4, 4, 2)
    words = torch.zeros(experts, slabs, 4, 8, 2, depth, 2, 4, dtype=torch.int32, device=blocks.device)
    for pair, (sign, low) in enumerate(zip(_SIGN_BITS, _LOW_BITS, strict=True)):
        for odd in (0, 1):
            code = codes[:, :, :, :, :, :, :, pair, :, odd].int()
            words |= ((code >> 3) << (sign + 16 * odd)) | ((code & 7) << (low + 16 * odd))
    return FragmentExperts(
        words.permute(0, 1, 5, 2, 3, 7, 4, 6).reshape(experts, slabs, depth, 512).contiguous(),
        (scales + _REBASE).view(experts, slabs, 4, 8, 2, depth, 2).permute(0, 1, 5, 2, 3, 4, 6).reshape(
            experts, slabs, depth, 128
        ).contiguous(),
        w.bias,
        groups * GROUP,
    )  # fmt: skip


def restore(w: FragmentExperts) -> ExpertWeights:
    """The published order of permuted experts: what `permute` was given."""
    experts, slabs, depth, _ = w.blocks.shape
    words = w.blocks.view(experts, slabs, depth, 4, 8, 4, 2, 2).permute(0, 1, 3, 4, 6, 2, 7, 5)
    pairs = []
    for sign, low in zip(_SIGN_BITS, _LOW_BITS, strict=True):
        odds = [((words >> (sign + at) & 1) << 3) | (words >> (low + at) & 7) for at in (0, 16)]
        pairs.append(odds[0] | odds[1] << 4)
    blocks = torch.stack(pairs, dim=-2).to(torch.uint8).reshape(experts, slabs * ROWS, depth * 2, 16)
    scales = w.scales.view(experts, slabs, depth, 4, 8, 2, 2).permute(0, 1, 3, 4, 5, 2, 6)
    scales = (scales - _REBASE).reshape(experts, slabs * ROWS, depth * 2)
    rows, groups = w.out_features, w.in_features // GROUP
    return ExpertWeights(blocks[:, :rows, :groups].contiguous(), scales[:, :rows, :groups].contiguous(), w.bias)

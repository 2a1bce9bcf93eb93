"""Experts in fragment order: every code where its thread looks for it, and the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.fragments import permute, restore
from tests.kernels import reference
from tests.kernels.cases import Cases


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 200), groups=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_what_was_permuted_can_be_restored(rows: int, groups: int, seed: int) -> None:
    """Odd sizes too: what pads them is left out again."""
    w = Cases(seed=seed).experts(2, rows, 32 * groups)

    back = restore(permute(w))

    assert torch.equal(w.blocks, back.blocks)
    assert torch.equal(w.scales, back.scales)
    assert w.bias is back.bias


def test_a_thread_finds_the_fragment_that_the_matrix_unit_gives_it() -> None:
    """By the table of the PTX manual: a0..a7 of thread 4r + c are rows r, r + 8 and inputs 2c, 2c + 1, 2c + 8, 2c + 9.

    Decoded here bit by bit from the words, with the arithmetic that the kernel does on two codes at a time.
    """
    w = Cases(seed=1).experts(1, 64, 128)
    dense, f = reference.decode(w.blocks, w.scales)[0], permute(w)
    assert f.blocks.shape == (1, 1, 2, 512)

    for unit, r, c in ((0, 0, 0), (1, 7, 3), (3, 5, 1)):
        for depth in (0, 1):
            for half in (0, 1):
                row = 16 * unit + 2 * r + half  # the row that stands at r + 8 * half
                for word in (0, 1):
                    at = ((unit * 8 + r) * 4 + c) * 4 + 2 * half + word
                    bits = int(f.blocks[0, 0, depth, at]) & 0xFFFFFFFF
                    scale = 2.0 ** (int(f.scales[0, 0, depth, (unit * 8 + r) * 4 + 2 * half + word]) - 126 - 127)
                    for pair, halves in enumerate(shifted(bits)):
                        for odd in (0, 1):
                            found = from_bf16(halves >> (16 * odd) & 0xFFFF) * 2.0**126 * scale
                            k = 64 * depth + 32 * word + 8 * pair + 2 * c + odd
                            assert float(dense[row, k]) == found, (row, k)


def shifted(word: int) -> tuple[int, int, int, int]:
    """The four pairs of a word as bf16 bit patterns, as the kernel makes them."""
    return (
        word & 0x81C081C0,
        (word << 2) & 0x80008000 | (word << 3) & 0x01C001C0,
        (word << 6) & 0x81C081C0,
        (word << 1) & 0x80008000 | (word >> 4) & 0x01C001C0,
    )


def from_bf16(bits: int) -> float:
    """The value of a bf16 bit pattern, by the formula of the format."""
    sign, exponent, mantissa = -1.0 if bits >> 15 else 1.0, bits >> 7 & 0xFF, bits & 0x7F
    return sign * (mantissa / 128 * 2.0**-126 if exponent == 0 else (1 + mantissa / 128) * 2.0 ** (exponent - 127))


def test_scales_that_the_order_cannot_hold_are_refused() -> None:
    """2^1 is the largest; the message says both."""
    w = Cases().experts(1, 16, 32)
    w.scales[0, 3, 0] = 128
    permute(w)
    w.scales[0, 3, 0] = 129

    with pytest.raises(ValueError, match=r"a scale of 2\^2 is above 2\^1"):
        permute(w)


def test_no_experts_are_permuted_too() -> None:
    """A rank without experts in a layer."""
    assert permute(Cases().experts(0, 64, 64)).num_experts == 0

"""MXFP4: the table by hand, the format's formula in float64, the rounding rule of the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal.kernels.mxfp4 import VALUES, ExpertWeights, dequantize, quantize
from tests.kernels import reference
from tests.kernels.cases import Cases

# Written out by hand from OCP MX 1.0, table 5: code, sign, exponent bits, mantissa bit, value.
BY_HAND = [
    (0b0000, 0.0), (0b0001, 0.5), (0b0010, 1.0), (0b0011, 1.5), (0b0100, 2.0), (0b0101, 3.0), (0b0110, 4.0),
    (0b0111, 6.0), (0b1000, -0.0), (0b1001, -0.5), (0b1010, -1.0), (0b1011, -1.5), (0b1100, -2.0), (0b1101, -3.0),
    (0b1110, -4.0), (0b1111, -6.0),
]  # fmt: skip

# |value| with scale 1 -> code it must round to. Every midpoint, both neighbours of one, saturation.
ROUNDS_TO = [
    (0.0, 0), (0.25, 0), (0.2500001, 1), (0.5, 1), (0.75, 2), (0.7499999, 1), (1.0, 2), (1.25, 2), (1.2500001, 3),
    (1.5, 3), (1.75, 4), (2.0, 4), (2.5, 4), (2.5000002, 5), (3.0, 5), (3.5, 6), (3.4999998, 5), (4.0, 6), (5.0, 6),
    (5.0000005, 7), (6.0, 7), (7.9, 7),
]  # fmt: skip


def one_group(code: int, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A group whose 32 elements all have this code."""
    return torch.full((1, 16), code | code << 4, dtype=torch.uint8), torch.tensor([scale], dtype=torch.uint8)


@pytest.mark.parametrize(("code", "value"), BY_HAND)
def test_each_code_has_the_value_of_the_specification(code: int, value: float) -> None:
    """The decoder, its table and the second oracle all agree with the table written by hand."""
    decoded = dequantize(*one_group(code, 127), torch.float32)

    assert torch.full((32,), value).tolist() == decoded.tolist()
    assert torch.signbit(torch.tensor(value)) == torch.signbit(decoded[0])
    assert value == VALUES[code] == reference.e2m1(code)


def test_the_low_nibble_is_the_even_element() -> None:
    """Byte 0x52 is 1.0 then 3.0."""
    blocks = torch.zeros(1, 16, dtype=torch.uint8)
    blocks[0, 3] = 0x52

    decoded = dequantize(blocks, torch.tensor([127], dtype=torch.uint8), torch.float32)

    assert decoded[6:8].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0, 1, 2, 126, 127, 128, 252])
def test_every_number_is_exact_at_every_scale(scale: int, dtype: torch.dtype) -> None:
    """The smallest, 2^-128, is a subnormal of fp32 and bf16, and nothing up to 6 * 2^125 loses a bit."""
    for code in range(16):
        expected = reference.e2m1(code) * 2.0 ** (scale - 127)

        assert expected == dequantize(*one_group(code, scale), dtype)[0].item()


def test_the_extremes_of_the_scale() -> None:
    """Above 2^128 fp32 gives inf and float64 the number; scale 255 is NaN in all."""
    assert dequantize(*one_group(7, 254), torch.float32)[0].item() == torch.inf
    assert dequantize(*one_group(7, 254), torch.float64)[0].item() == 6.0 * 2.0**127
    assert dequantize(*one_group(0, 255), torch.float32).isnan().all()


def test_decode_agrees_with_the_formula_in_float64() -> None:
    """Random bytes of a whole projection, shape kept."""
    w = Cases(seed=3).experts(3, 10, 96)

    assert torch.equal(reference.decode(w.blocks, w.scales), dequantize(w.blocks, w.scales, torch.float64))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("magnitude", "code"), ROUNDS_TO)
def test_elements_round_to_nearest_ties_to_even_and_saturate(magnitude: float, code: int, sign: float) -> None:
    """One element of 4..8 fixes the scale at 1; the other is the one under test."""
    w = torch.zeros(32)
    w[0], w[1] = max(4.0, magnitude), sign * magnitude

    blocks, scales = quantize(w)

    assert scales.item() == 127
    assert int(blocks[0, 0]) >> 4 == code | (8 if sign < 0 else 0)


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(6.0, 127), (4.0, 127), (3.999, 126), (8.0, 128), (1.0, 125), (0.0, 0), (2.0**-149, 0), (3.4e38, 252)],
)
def test_the_scale_is_the_power_of_two_below_the_largest_divided_by_four(largest: float, scale: int) -> None:
    """OCP MX 1.0, section 6.3, clamped to what a byte can say."""
    w = torch.zeros(32)
    w[5] = largest

    assert scale == quantize(w)[1].item()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, (2, 3, 16)), hnp.arrays(np.uint8, (2, 3), elements=st.integers(0, 250)))
def test_what_was_decoded_encodes_to_the_same_numbers(codes: np.ndarray, scales: np.ndarray) -> None:
    """Quantising is the identity on numbers that MXFP4 can hold (the bytes may differ: 0.5 * 2 is 1 * 1)."""
    w = dequantize(torch.from_numpy(codes), torch.from_numpy(scales), torch.float32)

    assert torch.equal(w, dequantize(*quantize(w), torch.float32))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, (2, 32), elements=st.floats(-100, 100, width=32)))
def test_no_code_would_have_been_nearer(w: np.ndarray) -> None:
    """Each element's error is the least that its group's scale allows."""
    blocks, scales = quantize(torch.from_numpy(w))
    decoded = reference.decode(blocks[:, None], scales[:, None])[:, 0]
    grid = torch.tensor([reference.e2m1(c) for c in range(16)], dtype=torch.float64)
    reachable = grid * 2.0 ** (scales.double() - 127)[..., None]
    wide = torch.from_numpy(w).double()

    least = (wide[..., None] - reachable[:, None, 0]).abs().amin(-1)

    assert torch.equal(least, (wide - decoded).abs())


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    """There is no code for inf or NaN."""
    with pytest.raises(ValueError, match="finite"):
        quantize(torch.full((32,), bad))


def test_a_width_that_is_no_multiple_of_a_group_is_refused() -> None:
    """Padding is the caller's decision."""
    with pytest.raises(ValueError, match="multiple of 32, found 33"):
        quantize(torch.zeros(33))


def test_expert_weights_know_their_shape() -> None:
    """[E,N,G,16] blocks are E experts of N rows of 32 G numbers."""
    w = Cases().experts(3, 10, 96)

    assert (w.num_experts, w.out_features, w.in_features) == (3, 10, 96)
    with pytest.raises(AssertionError, match="bias"):
        ExpertWeights(w.blocks, w.scales, w.bias[:, :9])

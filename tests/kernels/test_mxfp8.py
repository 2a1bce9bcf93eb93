"""MXFP8: the numbers of E4M3 by the format's formula, and the rounding rule of the specification."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.mxfp8 import dequantize, quantize
from tests.kernels.cases import Cases


def e4m3(code: int) -> float:
    """(-1)^S * 2^(E-7) * (1 + M/8), or (-1)^S * 2^-6 * M/8 where E is 0; S.1111.111 is NaN (OCP 8-bit, table 1)."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    return sign * (2.0**-6 * mantissa / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [3, 100, 127, 134])
def test_every_code_has_the_value_of_the_specification(scale: int, dtype: torch.dtype) -> None:
    """All 256 codes at small, usual and the largest scales, exact."""
    codes = torch.arange(256, dtype=torch.uint8)

    found = dequantize(codes, torch.full((8,), scale, dtype=torch.uint8), dtype)

    expected = torch.tensor([e4m3(c) * 2.0 ** (scale - 127) for c in range(256)], dtype=torch.float64)
    torch.testing.assert_close(expected, found.double(), rtol=0.0, atol=0.0, equal_nan=True)


def test_quantising_is_the_identity_on_what_it_gave() -> None:
    """Numbers that MXFP8 holds stay, whatever the group's largest."""
    w = Cases(seed=1).normal(3, 5, 64)
    once = dequantize(*quantize(w), torch.float32)

    assert torch.equal(once, dequantize(*quantize(once), torch.float32))


def test_no_code_would_have_been_nearer() -> None:
    """Each element's error is the least that its group's scale allows, saturation included."""
    w = Cases(seed=2).normal(4, 32)
    codes, scales = quantize(w)
    grid = torch.tensor([e4m3(c) for c in range(256) if c & 0x7F != 0x7F], dtype=torch.float64)
    reachable = grid * 2.0 ** (scales.double() - 127)[..., None]

    least = (w.double()[..., None] - reachable).abs().amin(-1)

    assert torch.equal(least, (w.double() - dequantize(codes, scales, torch.float64)).abs())


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    """There is no code for inf, and no weight is NaN."""
    with pytest.raises(ValueError, match="finite"):
        quantize(torch.full((32,), bad))


def test_widths_and_magnitudes_that_do_not_fit_are_refused() -> None:
    """Padding is the caller's decision; the largest scale is 2^7."""
    with pytest.raises(ValueError, match="multiple of 32, found 33"):
        quantize(torch.zeros(33))
    with pytest.raises(ValueError, match=r"a scale above 2\^7"):
        quantize(torch.full((32,), 2.0**16))

"""Rounding while training against the checkpoint's own."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.nano.model import build
from shoal.cluster.nano.published import as_published, is_packed, round_mxfp4
from shoal.cluster.nano.shape import NANO
from shoal.kernels import mxfp4


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32),
    st.integers(-20, 20),
)
def test_rounds_as_mxfp4(values: list[float], exponent: int) -> None:
    """Also at ties and next to powers of two."""
    weight = torch.ldexp(torch.tensor([values]), torch.tensor(exponent))
    weight[weight.abs() < 2.0**-60] = 0  # training never gets there, and the fast way stops at 2^-100
    expected = mxfp4.dequantize(*mxfp4.quantize(weight), torch.float32)
    torch.testing.assert_close(round_mxfp4(weight), expected, rtol=0, atol=0)


def test_every_tie_rounds_as_mxfp4() -> None:
    """All multiples of a quarter up to 8."""
    weight = torch.arange(-32, 32).float().mul(0.25).reshape(2, 32)
    expected = mxfp4.dequantize(*mxfp4.quantize(weight), torch.float32)
    torch.testing.assert_close(round_mxfp4(weight), expected, rtol=0, atol=0)


def test_the_own_weights_come_back() -> None:
    """Inside, weights are rounded; afterwards the unrounded ones are there, bit for bit."""
    model = build(NANO, 1)
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with as_published(model):
        changed = [name for name, parameter in model.named_parameters() if not torch.equal(own[name], parameter)]
    assert any(is_packed(name) for name in changed)
    assert "lm_head.weight" in changed
    assert all(torch.equal(own[name], parameter) for name, parameter in model.named_parameters())

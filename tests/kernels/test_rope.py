"""YaRN tables and the rotation, against transformers and complex numbers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from shoal.kernels.rope import apply_rope_torch_, rope_tables
from tests.kernels import reference
from tests.kernels.cases import Cases

CONCENTRATION = 0.1 * math.log(32.0) + 1.0


def tables(positions: int, factor: float = 32.0, head_dim: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    concentration = CONCENTRATION if factor > 1 else 1.0
    return rope_tables(150000.0, factor, 32.0, 1.0, 4096, concentration, head_dim, positions, "cpu")


@pytest.mark.parametrize("positions", [torch.arange(5000), torch.tensor([130000, 131071])])
def test_tables_equal_those_of_transformers(positions: torch.Tensor) -> None:
    """Bit for bit on its first positions; to fp32's last bit far out, where its cos may take another path."""
    theirs = GptOssRotaryEmbedding(GptOssConfig())(torch.zeros(1), positions[None])

    for mine, their in zip(tables(131072), theirs, strict=True):
        torch.testing.assert_close(mine[positions], their[0], rtol=0, atol=2.5e-7)


def test_the_ramp_is_not_truncated() -> None:
    """Dimensions up to 8 keep their frequency, from 18 on they are stretched 32 times (low 8.09, high 17.40)."""
    cos, sin = tables(2)
    angle = torch.atan2(sin[1], cos[1]).double()
    plain = 150000.0 ** (-torch.arange(32).double() / 32)

    torch.testing.assert_close(angle[:9], plain[:9], rtol=1e-6, atol=0)
    torch.testing.assert_close(angle[18:] * 32, plain[18:], rtol=1e-5, atol=0)
    ramp = 1 - (torch.arange(9, 18).double() - 8.09278) / (17.39802 - 8.09278)
    torch.testing.assert_close(angle[9:18], plain[9:18] * (ramp + (1 - ramp) / 32), rtol=1e-5, atol=0)


def test_both_tables_carry_the_concentration() -> None:
    """cos^2 + sin^2 is its square."""
    cos, sin = tables(700)

    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, CONCENTRATION**2), rtol=1e-6, atol=0)


def test_a_factor_of_one_is_the_plain_embedding() -> None:
    """No stretching and no concentration."""
    cos, _ = tables(40, factor=1.0, head_dim=16)
    angles = torch.arange(40).double()[:, None] * 150000.0 ** (-torch.arange(8).double() / 8)

    torch.testing.assert_close(angles.cos(), cos.double(), rtol=0, atol=1e-5)


def test_a_row_of_the_table_never_depends_on_its_length() -> None:
    """A worker that serves shorter contexts computes the same bits."""
    long, short = tables(1500), tables(13)

    assert torch.equal(long[0][:13], short[0])
    assert torch.equal(long[1][:13], short[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_are_rotated_in_place(dtype: torch.dtype) -> None:
    """NeoX: element i turns with element i + head_dim/2; queries and keys alike, each by its own position."""
    q, k = Cases(seed=1, dtype=dtype).normal(5, 6, 64), Cases(seed=2, dtype=dtype).normal(5, 2, 64)
    positions = torch.tensor([0, 3, 3, 100, 7])
    cos, sin = tables(128)
    expected = [reference.rotate(x, positions, cos, sin) for x in (q, k)]

    apply_rope_torch_(q, k, positions, cos, sin)

    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(expected[0], q.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(expected[1], k.double(), rtol=tolerance, atol=tolerance)

"""linear, gate_up and down in C++: right to the rounding bound, and each row the same bits in any company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.kernels.mxfp4 import ExpertWeights
from shoal.kernels.native.binding import Library
from tests.kernels import reference
from tests.kernels.cases import Cases
from tests.kernels.native_libraries import LIBRARIES, assert_same_bits, every_library

LIMIT, ALPHA = 7.0, 1.702
# Whole steps and tails of every kind.
widths = st.sampled_from([1, 7, 16, 31, 32, 33, 48, 95, 128, 1024, 1056, 1100, 2080])
outputs = st.integers(1, 140)
tokens = st.integers(1, 140)
few = settings(max_examples=25, deadline=None)


def assert_within_rounding(expected: Tensor, actual: Tensor, magnitude: Tensor, width: int) -> None:
    """32 products, then width/32 such sums: so many roundings of the magnitudes, twice where nothing is fused."""
    bound = (2 * (32 + width / 32 + 2) + 2) * 2.0**-24 * magnitude + 1e-30
    assert bool(((actual.double() - expected).abs() <= bound).all())


@every_library
@given(T=tokens, N=outputs, K=widths, biased=st.booleans(), seed=st.integers(0, 99))
@few
def test_linear_is_right_to_the_rounding_bound(
    library: Library, T: int, N: int, K: int, biased: bool, seed: int
) -> None:
    """fp32 activations times bf16 weights, within what fp32 sums in that order may lose."""
    cases = Cases(seed)
    x, bias = cases.normal(T, K), cases.normal(N, dtype=torch.bfloat16) if biased else None
    weight = cases.normal(N, K, dtype=torch.bfloat16)

    magnitude = reference.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
    assert_within_rounding(reference.linear(x, weight, bias), library.linear(x, weight, bias), magnitude, K)


@every_library
@given(T=tokens, N=outputs, K=widths, threads=st.sampled_from([1, 2, 3]), data=st.data())
@few
def test_a_row_of_linear_is_the_same_bits_in_any_company(
    library: Library, T: int, N: int, K: int, threads: int, data: st.DataObject
) -> None:
    """Alone, in the batch, in another order, among fewer, and with any number of threads."""
    x, weight = Cases(1).normal(T, K), Cases(2).normal(N, K, dtype=torch.bfloat16)
    order = torch.tensor(data.draw(st.permutations(range(T))))
    kept = data.draw(st.integers(1, T))
    library.set_threads(1)
    alone = torch.cat([library.linear(x[t : t + 1].contiguous(), weight, None) for t in range(T)])

    library.set_threads(threads)
    assert_same_bits(alone, library.linear(x, weight, None))
    assert_same_bits(alone[order][:kept], library.linear(x[order][:kept].contiguous(), weight, None))


@every_library
def test_linear_of_no_rows_or_no_outputs_is_empty(library: Library) -> None:
    """T = 0 and N = 0 are shapes like any other."""
    assert library.linear(torch.empty(0, 32), torch.ones(5, 32).bfloat16(), None).shape == (0, 5)
    assert library.linear(torch.ones(3, 32), torch.empty(0, 32).bfloat16(), None).shape == (3, 0)


@every_library
def test_linear_casts_once_at_the_end(library: Library) -> None:
    """out_dtype rounds the fp32 result and nothing before it."""
    x, weight = Cases(3).normal(4, 96), Cases(4).normal(8, 96, dtype=torch.bfloat16)
    assert torch.equal(
        library.linear(x, weight, None).bfloat16(), library.linear(x, weight, None, out_dtype=torch.bfloat16)
    )


@every_library
def test_every_code_under_every_scale_decodes_exactly(library: Library) -> None:
    """One weight per row against a one-hot activation gives the number itself: 16 codes, scale bytes 0 to 252.

    From 253 on, 4 and 6 are beyond fp32.
    """
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = torch.zeros(253, 32, 1, 16, dtype=torch.uint8)
    blocks[:, :16, 0, 3] = codes  # element 6, a low nibble
    blocks[:, 16:, 0, 3] = codes << 4  # element 7, a high nibble
    scales = torch.arange(253, dtype=torch.uint8)[:, None, None].expand(253, 32, 1).contiguous()
    weights = ExpertWeights(blocks, scales, torch.zeros(253, 32, dtype=torch.bfloat16))
    x = torch.zeros(2, 32)
    x[0, 6] = x[1, 7] = 1.0
    h = x.repeat(253, 1)
    offsets = torch.arange(254, dtype=torch.int32) * 2

    out = library.down(h, offsets, weights).view(253, 2, 32)
    expected = reference.decode(blocks, scales)[..., [6, 7]].transpose(1, 2).float()
    assert torch.equal(expected, out)


counts = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 5, 6, 7, 13, 61, 64, 130]), min_size=1, max_size=5)
groups = st.sampled_from([1, 2, 3, 32, 33])


@every_library
@given(T=st.integers(1, 20), counts=counts, half=st.integers(1, 40), G=groups, seed=st.integers(0, 99))
@few
def test_experts_are_right_to_the_rounding_bound(
    library: Library, T: int, counts: list[int], half: int, G: int, seed: int
) -> None:
    """gate_up and down against float64, experts without rows included."""
    cases = Cases(seed)
    w, K = cases.experts(len(counts), 2 * half, 32 * G), 32 * G
    rows, offsets = cases.assignment(T, counts)
    x = cases.normal(T, K)
    h = x[rows.long()].contiguous()
    size = ExpertWeights(w.blocks & 0x77, w.scales, w.bias.abs())  # without signs: the sums of magnitudes

    magnitude = reference.expert_linear(h.abs(), offsets, size)
    assert_within_rounding(reference.expert_linear(h, offsets, w), library.down(h, offsets, w), magnitude, K)
    expected = reference.gate_up(x, rows, offsets, w, LIMIT, ALPHA)
    actual = library.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@every_library
@given(counts=counts, half=st.integers(1, 40), G=groups, threads=st.sampled_from([1, 2]))
@few
def test_a_row_of_an_expert_is_the_same_bits_in_any_company(
    library: Library, counts: list[int], half: int, G: int, threads: int
) -> None:
    """A row computed alone, its expert alone in its matrix, equals the row of the full batch."""
    cases = Cases(5)
    w = cases.experts(len(counts), 2 * half, 32 * G)
    rows, offsets = cases.assignment(9, counts)
    x = cases.normal(9, 32 * G)
    library.set_threads(threads)
    gated = library.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)
    lowered = library.down(x[rows.long()].contiguous(), offsets, w)

    library.set_threads(1)
    first, one = torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    for expert, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        mine = ExpertWeights(*(t[expert : expert + 1].contiguous() for t in (w.blocks, w.scales, w.bias)))
        for row in range(begin, end, 11):
            token = x[int(rows[row])][None].contiguous()
            assert_same_bits(gated[row][None], library.gate_up(token, first, one, mine, limit=LIMIT, alpha=ALPHA))
            assert_same_bits(lowered[row][None], library.down(token, one, mine))


@every_library
def test_swiglu_clamps_as_published_and_passes_nan_on(library: Library) -> None:
    """gate is clamped from above only, up on both sides; a NaN activation stays in its own row."""
    weights = ExpertWeights(
        torch.zeros(1, 8, 1, 16, dtype=torch.uint8),
        torch.full((1, 8, 1), 127, dtype=torch.uint8),
        torch.tensor([[50.0, 50.0, -50.0, -50.0, 1.0, 2.0, 7.0, -3.0]], dtype=torch.bfloat16),
    )
    x = torch.zeros(2, 32)
    x[1, 0] = torch.nan
    rows, offsets = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)

    out = library.gate_up(x, rows, offsets, weights, limit=LIMIT, alpha=ALPHA)
    torch.testing.assert_close(
        out[0].double(), reference.gate_up(x[:1], rows[:1], torch.tensor([0, 1]), weights, LIMIT, ALPHA)[0].double(),
        rtol=1e-6, atol=1e-30,
    )  # fmt: skip
    assert bool(out[1].isnan().all())


@every_library
def test_no_rows_at_all_is_an_empty_result(library: Library) -> None:
    """A rank whose experts were chosen by nobody takes part with nothing."""
    w = Cases(6).experts(3, 4, 32)
    none, offsets = torch.empty(0, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    assert library.gate_up(torch.empty(0, 32), none, offsets, w, limit=LIMIT, alpha=ALPHA).shape == (0, 2)
    assert library.down(torch.empty(0, 32), offsets, w).shape == (0, 4)


@every_library
@pytest.mark.parametrize("bad", [[0, 3], [0, 1], [1, 2], [0, 2, 1, 2]], ids=str)
def test_offsets_that_do_not_cover_the_rows_are_refused(library: Library, bad: list[int]) -> None:
    """Our own bookkeeping going wrong is an assertion, never a read outside a tensor."""
    w = Cases(7).experts(len(bad) - 1, 4, 32)
    with pytest.raises(AssertionError, match="offsets"):
        library.down(torch.ones(2, 32), torch.tensor(bad, dtype=torch.int32), w)


@every_library
def test_a_row_index_outside_the_tokens_is_refused(library: Library) -> None:
    """The same for the gather."""
    w = Cases(8).experts(1, 4, 32)
    rows, offsets = torch.tensor([2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(AssertionError, match="row index"):
        library.gate_up(torch.ones(2, 32), rows, offsets, w, limit=LIMIT, alpha=ALPHA)


@pytest.mark.skipif(sum(library.fused for library in LIBRARIES) < 2, reason="needs two fused instruction sets")
@given(T=st.integers(1, 70), half=st.integers(1, 40), G=groups)
@few
def test_fused_instruction_sets_agree_in_every_bit(T: int, half: int, G: int) -> None:
    """AVX2 and AVX-512 are one kernel class: same lanes, same order, same tree, same exponential."""
    one, other = [library for library in LIBRARIES if library.fused][:2]
    cases = Cases(9)
    x, w, dense = cases.normal(T, 32 * G), cases.experts(2, 2 * half, 32 * G), cases.normal(half, 32 * G).bfloat16()
    rows, offsets = cases.assignment(T, [T // 2, T])

    assert_same_bits(one.linear(x, dense, None), other.linear(x, dense, None))
    assert_same_bits(
        one.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA),
        other.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA),
    )

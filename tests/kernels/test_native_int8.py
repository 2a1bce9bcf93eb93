"""Experts with 8-bit activations: as wrong as their rounding allows, and otherwise as strict as fp32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels import moe_matmul, native, target
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.kernels.native.binding import Library
from tests.kernels import reference
from tests.kernels.cases import Cases
from tests.kernels.native_libraries import LIBRARIES, assert_same_bits, every_library

LIMIT, ALPHA = 7.0, 1.702
counts = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 8, 9, 61, 75]), min_size=1, max_size=4)
groups = st.sampled_from([1, 2, 3, 33])
few = settings(max_examples=25, deadline=None)


@every_library
@given(counts=counts, N=st.integers(1, 140), G=groups, seed=st.integers(0, 99))
@few
def test_it_errs_by_its_rounding_alone(library: Library, counts: list[int], N: int, G: int, seed: int) -> None:
    """Each activation moves by at most half a step of 1/127 of the greatest of its 32; the rest is fp32."""
    cases = Cases(seed)
    w = cases.experts(len(counts), N, 32 * G)
    _, offsets = cases.assignment(3, counts)
    h = cases.normal(int(offsets[-1]), 32 * G)
    found = library.down(h, offsets, library.pack_experts(w, int8=True))

    step = h.view(-1, G, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(h.shape) / 127
    size = ExpertWeights(w.blocks & 0x77, w.scales, w.bias.abs())  # without signs: the sums of magnitudes
    moved = reference.expert_linear(step / 2, offsets, size)
    rounded = (2 * G + 6) * 2.0**-24 * reference.expert_linear(h.abs() + step, offsets, size)
    error = (found.double() - reference.expert_linear(h, offsets, w)).abs()
    assert bool((error <= moved * 1.0001 + rounded).all())


@every_library
@given(counts=counts, half=st.integers(1, 40), G=groups, threads=st.sampled_from([1, 2]))
@few
def test_a_row_is_the_same_bits_in_any_company(
    library: Library, counts: list[int], half: int, G: int, threads: int
) -> None:
    """Alone and in the batch, through both projections."""
    cases = Cases(5)
    w = library.pack_experts(cases.experts(len(counts), 2 * half, 32 * G), int8=True)
    rows, offsets = cases.assignment(9, counts)
    x = cases.normal(9, 32 * G)
    library.set_threads(threads)
    gated = library.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA)
    lowered = library.down(x[rows.long()].contiguous(), offsets, w)

    library.set_threads(1)
    ends = offsets[1:].tolist()
    for row in range(0, len(rows), 7):
        expert = next(e for e, end in enumerate(ends) if row < end)
        alone = torch.tensor([0] * (expert + 1) + [1] * (len(ends) - expert), dtype=torch.int32)
        token, zero = x[int(rows[row])][None].contiguous(), torch.zeros(1, dtype=torch.int32)
        assert_same_bits(gated[row][None], library.gate_up(token, zero, alone, w, limit=LIMIT, alpha=ALPHA))
        assert_same_bits(lowered[row][None], library.down(token, alone, w))


@every_library
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_number_shows_in_its_own_row(library: Library, bad: float) -> None:
    """Never as a plausible number, never next door; and zeros give the bias."""
    w = library.pack_experts(Cases(6).experts(1, 20, 64), int8=True)
    h = Cases(7).normal(3, 64)
    h[1, 5] = bad
    h[2] = 0.0
    out = library.down(h, torch.tensor([0, 3], dtype=torch.int32), w)
    assert bool(out[0].isfinite().all())
    assert bool(out[1].isnan().all())
    assert torch.equal(out[2], w.bias[0].float())


@pytest.mark.skipif(sum(library.fused for library in LIBRARIES) < 2, reason="needs two fused instruction sets")
@given(counts=counts, half=st.integers(1, 40), G=groups)
@few
def test_fused_instruction_sets_agree_in_every_bit(counts: list[int], half: int, G: int) -> None:
    """With VNNI and without: whole numbers are exact however they are added."""
    fused = [library for library in LIBRARIES if library.fused]
    cases = Cases(9)
    w = cases.experts(len(counts), 2 * half, 32 * G)
    rows, offsets = cases.assignment(5, counts)
    results = [
        library.gate_up(
            cases.normal(5, 32 * G), rows, offsets, library.pack_experts(w, int8=True), limit=LIMIT, alpha=ALPHA
        )
        for library in fused
    ]
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.reason()}")
def test_it_is_asked_for_and_has_a_kernel_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never by default; where other kernels serve it is refused."""
    monkeypatch.delenv(target.OVERRIDE, raising=False)
    assert not target.choose("cpu").int8
    assert target.choose("cpu", int8=True).kernel_class == target.choose("cpu").kernel_class.replace(
        "cpu-", "cpu-int8-"
    )
    monkeypatch.setenv(target.OVERRIDE, "torch")
    with pytest.raises(target.BackendError, match="8-bit activations"):
        target.choose("cpu", int8=True)
    with pytest.raises(AssertionError, match="torch kernels keep"):
        moe_matmul.prepare(Cases(1).experts(1, 16, 32), int8=True)

"""attention in C++: right against float64, and each query the same bits however it got there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.kernels.attention import AttentionBatch
from shoal.kernels.native.binding import Library
from tests.kernels import reference
from tests.kernels.cases import Cases
from tests.kernels.native_libraries import LIBRARIES, assert_same_bits, every_library

SCALE = 0.25
few = settings(max_examples=20, deadline=None)
fewer = settings(max_examples=8, deadline=None)  # the reference goes query by query
windows = st.sampled_from([None, 1, 5, 63, 64, 65, 128])
heads = st.sampled_from([(1, 1), (3, 1), (8, 2), (7, 1), (16, 1), (12, 4)])


def spans_of(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(new, new + before) for new, before in pairs]


spans = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 150)), min_size=1, max_size=3).map(spans_of)


@every_library
@given(
    spans=spans, window=windows, heads=heads, head_dim=st.sampled_from([16, 32, 64]), bs=st.sampled_from([1, 16, 24])
)
@fewer
def test_attention_is_right(
    library: Library, spans: list[tuple[int, int]], window: int | None, heads: tuple[int, int], head_dim: int, bs: int
) -> None:
    """Against one float64 softmax per query and head; slots beyond the keys hold NaN and are never summed."""
    spans = [(new, max(keys, 1)) for new, keys in spans]
    hq, hk = heads
    k_cache, v_cache, batch = Cases(1).sequences(spans, kv_heads=hk, head_dim=head_dim, block_size=bs)
    q, sinks = Cases(2).normal(sum(new for new, _ in spans), hq, head_dim), Cases(3).normal(hq)

    out = library.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
    expected = reference.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)


def one_sequence(context: int, hq: int, hk: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(queries for every position, caches, block table, sinks)"""
    k_cache, v_cache, batch = Cases(4).sequences([(context, context)], kv_heads=hk, head_dim=32)
    return Cases(5).normal(context, hq, 32), k_cache, v_cache, batch.block_tables, Cases(6).normal(hq)


def chunk(table: Tensor, first: int, last: int) -> AttentionBatch:
    cu_q, context = torch.tensor([0, last - first], dtype=torch.int32), torch.tensor([last], dtype=torch.int32)
    return AttentionBatch(cu_q, context, table)


@every_library
@given(context=st.integers(2, 300), window=windows, cut=st.floats(0.01, 0.99), threads=st.sampled_from([1, 2]))
@few
def test_a_prompt_in_chunks_gives_the_bits_of_the_whole(
    library: Library, context: int, window: int | None, cut: float, threads: int
) -> None:
    """Cut anywhere, or token by token as decoding does, with any number of threads."""
    q, k_cache, v_cache, table, sinks = one_sequence(context, 6, 2)

    def run(first: int, last: int) -> Tensor:
        piece = q[first:last].contiguous()
        return library.attention(piece, k_cache, v_cache, chunk(table, first, last), sinks, window, SCALE)

    library.set_threads(1)
    whole = run(0, context)
    library.set_threads(threads)
    middle = max(1, int(context * cut))
    assert_same_bits(whole, torch.cat([run(0, middle), run(middle, context)]))
    for position in {0, middle, context - 1}:
        assert_same_bits(whole[position : position + 1], run(position, position + 1))


@every_library
@given(spans=spans, window=windows)
@few
def test_a_sequence_is_the_same_bits_among_others(
    library: Library, spans: list[tuple[int, int]], window: int | None
) -> None:
    """Each sequence alone equals its part of the batch."""
    k_cache, v_cache, batch = Cases(7).sequences([(new, max(keys, 1)) for new, keys in spans])
    q, sinks = Cases(8).normal(sum(new for new, _ in spans), 4, 64), Cases(9).normal(4)
    together = library.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)

    for s in range(len(spans)):
        begin, end = int(batch.cu_q[s]), int(batch.cu_q[s + 1])
        cu_q = torch.tensor([0, end - begin], dtype=torch.int32)
        alone = AttentionBatch(cu_q, batch.context_lens[s : s + 1], batch.block_tables[s : s + 1].contiguous())
        mine = library.attention(q[begin:end].contiguous(), k_cache, v_cache, alone, sinks, window, SCALE)
        assert_same_bits(together[begin:end], mine)


@every_library
def test_a_large_sink_takes_the_weight_from_the_keys(library: Library) -> None:
    """A sink of 80 leaves e^-80 of attention, one of -infinity leaves the plain softmax."""
    q, k_cache, v_cache, table, _ = one_sequence(10, 2, 2)
    sinks = torch.tensor([80.0, -torch.inf])
    batch = chunk(table, 0, 10)

    out = library.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    assert float(out[:, 0].abs().max()) < 1e-20
    expected = reference.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)


@every_library
def test_blocks_that_left_the_window_are_not_touched(library: Library) -> None:
    """Their entries in the table may be anything: a sliding layer frees them."""
    q, k_cache, v_cache, table, sinks = one_sequence(100, 2, 1)
    batch = chunk(table, 99, 100)
    before = library.attention(q[99:].contiguous(), k_cache, v_cache, batch, sinks, 10, SCALE)

    table[0, :5] = -1
    assert_same_bits(before, library.attention(q[99:].contiguous(), k_cache, v_cache, batch, sinks, 10, SCALE))


@every_library
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("block_tables", 99, "block is outside"),
        ("block_tables", -1, "block is outside"),
        ("context_lens", 5, "shorter than its queries"),
        ("context_lens", 10_000, "longer than its block table"),
        ("cu_q", 1, "cu_q"),
    ],
)
def test_a_batch_that_points_outside_the_cache_is_refused(
    library: Library, field: str, value: int, message: str
) -> None:
    """Checked before anything is read: an assertion, never a stray pointer."""
    q, k_cache, v_cache, table, sinks = one_sequence(10, 2, 1)
    batch = chunk(table, 0, 10)
    getattr(batch, field).fill_(value)
    with pytest.raises(AssertionError, match=message):
        library.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)


@pytest.mark.skipif(sum(library.fused for library in LIBRARIES) < 2, reason="needs two fused instruction sets")
@given(spans=spans, window=windows, heads=heads)
@few
def test_fused_instruction_sets_agree_in_every_bit(
    spans: list[tuple[int, int]], window: int | None, heads: tuple[int, int]
) -> None:
    """AVX2 and AVX-512 are one kernel class for attention too."""
    one, other = [library for library in LIBRARIES if library.fused][:2]
    k_cache, v_cache, batch = Cases(10).sequences([(new, max(keys, 1)) for new, keys in spans], kv_heads=heads[1])
    q, sinks = Cases(11).normal(sum(new for new, _ in spans), heads[0], 64), Cases(12).normal(heads[0])
    assert_same_bits(
        one.attention(q, k_cache, v_cache, batch, sinks, window, SCALE),
        other.attention(q, k_cache, v_cache, batch, sinks, window, SCALE),
    )

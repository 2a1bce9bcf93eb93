"""The twin of paged attention, against a float64 softmax with the sink as a column, and for exactness."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.attention import AttentionBatch, attention_torch, write_kv_torch
from tests.kernels import reference
from tests.kernels.cases import Cases

SCALE = 0.125


@pytest.mark.parametrize("window", [None, 1, 5, 128])
@pytest.mark.parametrize("heads", [2, 6, 8])
def test_attention_is_the_published_mathematics(heads: int, window: int | None) -> None:
    """Prompt, chunk, single token and a context past the window in one batch; sinks unscaled; heads grouped."""
    cases = Cases(seed=heads)
    spans = [(7, 7), (1, 150), (3, 70), (1, 1)]
    k_cache, v_cache, batch = cases.sequences(spans)
    q, sinks = cases.normal(12, heads, 64), cases.normal(heads).bfloat16()

    out = attention_torch(q, k_cache, v_cache, batch, sinks, window, SCALE)

    expected = reference.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sink", [-1e4, 0.0, 60.0, 1e4])
def test_a_sink_of_any_size_is_safe(sink: float) -> None:
    """A huge sink takes everything, a tiny one nothing, neither overflows."""
    cases = Cases(seed=5)
    k_cache, v_cache, batch = cases.sequences([(2, 9)])
    q, sinks = cases.normal(2, 2, 64), torch.full((2,), sink)

    out = attention_torch(q, k_cache, v_cache, batch, sinks, None, SCALE)

    expected = reference.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 90),
    cuts=st.sets(st.integers(1, 89), max_size=4),
    window=st.sampled_from([None, 3, 16, 64]),
    seed=st.integers(0, 2**31),
)
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(
    length: int, cuts: set[int], window: int | None, seed: int
) -> None:
    """However a prompt is cut, down to single tokens as in decoding, beside another sequence or not."""
    cases = Cases(seed=seed)
    k_cache, v_cache, both = cases.sequences([(length, length), (2, 40)])
    q, sinks = cases.normal(length + 2, 4, 64), cases.normal(4)
    whole = attention_torch(q, k_cache, v_cache, both, sinks, window, SCALE)
    bounds = [0, *sorted(c for c in cuts if c < length), length]

    for lo, hi in itertools.pairwise(bounds):
        chunk = AttentionBatch(torch.tensor([0, hi - lo]), torch.tensor([hi]), both.block_tables[:1])
        part = attention_torch(q[lo:hi], k_cache, v_cache, chunk, sinks, window, SCALE)
        assert torch.equal(whole[lo:hi], part)


def test_where_the_blocks_lie_changes_no_bit() -> None:
    """Another permutation and another size of blocks: the same keys, the same bits."""
    q, sinks = Cases(seed=1).normal(3, 4, 64), Cases(seed=2).normal(4)
    flat_k, flat_v = Cases(seed=3).normal(50, 2, 64), Cases(seed=4).normal(50, 2, 64)
    results = []
    for block_size, seed in ((16, 0), (16, 1), (8, 2)):
        k_cache, v_cache, batch = Cases(seed=seed).sequences([(3, 50)], block_size=block_size)
        table = batch.block_tables[0].long()
        slots = torch.tensor([int(table[p // block_size]) * block_size + p % block_size for p in range(50)])
        write_kv_torch(flat_k, flat_v, k_cache, v_cache, slots)
        results.append(attention_torch(q, k_cache, v_cache, batch, sinks, 20, SCALE))

    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_writing_touches_the_named_slots_only() -> None:
    """Slot = block * block_size + offset; everything else stays, and a negative slot is none."""
    cases = Cases(seed=1)
    k_cache, v_cache = torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8)
    k, v = cases.normal(2, 2, 8), cases.normal(2, 2, 8) + 1

    write_kv_torch(k, v, k_cache, v_cache, torch.tensor([9, 2]))
    write_kv_torch(k, v, k_cache, v_cache, torch.tensor([-1, -7]))

    assert torch.equal(k_cache[2, 1], k[0])
    assert torch.equal(v_cache[0, 2], v[1])
    assert int((k_cache != 0).any(-1).any(-1).sum()) == 2

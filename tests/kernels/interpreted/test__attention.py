"""The Triton attention kernels in the interpreter, against their twin."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _attention
from shoal.kernels.attention import AttentionBatch, attention_torch, write_kv_torch
from tests.kernels.cases import Cases
from tests.kernels.interpreted.closeness import DTYPES, assert_close

SCALE = 0.125


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 10, 128])
@pytest.mark.parametrize("heads", [2, 6, 16])
def test_attention_equals_its_twin(heads: int, window: int | None, dtype: torch.dtype) -> None:
    """Prompt, chunk and decode in one batch, groups that fill a tile and groups that do not."""
    cases = Cases(seed=heads, dtype=dtype)
    k_cache, v_cache, batch = cases.sequences([(20, 20), (1, 150), (3, 70)])
    q, sinks = cases.normal(24, heads, 64), cases.normal(heads, dtype=torch.bfloat16)

    expected = attention_torch(q, k_cache, v_cache, batch, sinks, window, SCALE)

    assert_close(expected, _attention.attention(q, k_cache, v_cache, batch, sinks, window, SCALE))


def test_a_split_context_gives_the_bits_of_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program per split and a merge, or one program for all: the same sums in the same order."""
    monkeypatch.setattr(_attention, "_SPLIT", 128)
    cases = Cases(seed=1)
    k_cache, v_cache, batch = cases.sequences([(1, 300), (2, 129), (1, 5)])
    q, sinks = cases.normal(4, 4, 64), cases.normal(4)
    split = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    monkeypatch.setattr(_attention, "_ENOUGH_PROGRAMS", 0)

    whole = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)

    assert torch.equal(whole, split)
    assert_close(attention_torch(q, k_cache, v_cache, batch, sinks, None, SCALE), whole)


@pytest.mark.parametrize("window", [None, 30])
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(window: int | None) -> None:
    """Cut anywhere, beside another sequence or alone."""
    cases = Cases(seed=2)
    k_cache, v_cache, both = cases.sequences([(100, 100), (2, 40)])
    q, sinks = cases.normal(102, 4, 64), cases.normal(4)
    whole = _attention.attention(q, k_cache, v_cache, both, sinks, window, SCALE)

    for lo, hi in ((0, 33), (33, 99), (99, 100)):
        cu_q, contexts = (torch.tensor(numbers, dtype=torch.int32) for numbers in ([0, hi - lo], [hi]))
        chunk = AttentionBatch(cu_q, contexts, both.block_tables[:1])
        part = _attention.attention(q[lo:hi], k_cache, v_cache, chunk, sinks, window, SCALE)
        assert torch.equal(whole[lo:hi], part)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_equals_its_twin(dtype: torch.dtype) -> None:
    """Copies, so the bits are equal; other slots stay, and a negative slot is none."""
    cases = Cases(seed=3, dtype=dtype)
    k, v = cases.normal(4, 3, 64), cases.normal(4, 3, 64) + 1
    caches = [torch.zeros(4, 8, 3, 64, dtype=dtype) for _ in range(4)]
    slots = torch.tensor([31, 0, 9, -1])

    _attention.write_kv(k, v, caches[0], caches[1], slots)
    write_kv_torch(k, v, caches[2], caches[3], slots)

    assert torch.equal(caches[2], caches[0])
    assert torch.equal(caches[3], caches[1])


def test_no_queries_launch_nothing() -> None:
    """An idle rank takes part with zero tokens."""
    cases = Cases()
    k_cache, v_cache, batch = cases.sequences([])

    out = _attention.attention(cases.normal(0, 4, 64), k_cache, v_cache, batch, cases.normal(4), None, SCALE)

    assert out.shape == (0, 4, 64)

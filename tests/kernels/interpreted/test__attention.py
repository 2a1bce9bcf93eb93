"""The Triton attention kernels in the interpreter, against their twin."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import _attention, _rope
from shoal.kernels.attention import AttentionBatch, BlockShape, attention_torch, write_kv_torch
from shoal.kernels.rope import rope_tables
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


def test_a_shared_context_gives_the_bits_of_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs and a merge, or one program for all: the same sums in the same order, near and far splits."""
    monkeypatch.setattr(_attention, "_NEAR", 128)
    monkeypatch.setattr(_attention, "_NEARS", 2)
    monkeypatch.setattr(_attention, "_FAR", 256)
    cases = Cases(seed=1)
    k_cache, v_cache, batch = cases.sequences([(1, 700), (2, 129), (1, 5)])
    q, sinks = cases.normal(4, 4, 64), cases.normal(4)
    shared = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    monkeypatch.setattr(_attention, "_shares", lambda tokens, programs, splits: 1)

    whole = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)

    assert torch.equal(whole, shared)
    assert_close(attention_torch(q, k_cache, v_cache, batch, sinks, None, SCALE), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("spans", [[(1, 290), (1, 16), (1, 1)], [(3, 40), (1, 17)]])
def test_one_call_gives_the_bits_of_its_launchers(
    spans: list[tuple[int, int]], window: int | None, dtype: torch.dtype
) -> None:
    """Rotated, stored and attended: output and both caches as from three launches, decoding and in chunks."""
    cases, shape = Cases(seed=4, dtype=dtype), BlockShape(4, 2, 64, 1e-5, SCALE)
    k_cache, v_cache, batch = cases.sequences(spans)
    tokens = sum(new for new, _ in spans)
    positions = torch.cat([torch.arange(context - new, context) for new, context in spans])
    rows = [s for s, (new, _) in enumerate(spans) for _ in range(new)]
    table = batch.block_tables[rows, positions // 16].long()
    slots = table * 16 + positions % 16
    rope = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 512, "cpu")
    qkv, sinks = cases.normal(tokens, 8 * 64), cases.normal(4)
    caches = [(k_cache.clone(), v_cache.clone()) for _ in range(2)]

    one = _attention.rope_attention(qkv, shape, rope, positions, caches[0], slots, batch, sinks, window)

    q, k, v = (part.contiguous().view(tokens, -1, 64) for part in torch.split(qkv, [256, 128, 128], dim=-1))
    _rope.apply_rope_(q, k, positions, *rope)
    _attention.write_kv(k, v, *caches[1], slots)
    three = _attention.attention(q, *caches[1], batch, sinks, window, SCALE)
    assert torch.equal(three.view(tokens, -1), one)
    for mine, expected in zip(*caches, strict=True):
        assert torch.equal(expected[~expected.isnan()], mine[~expected.isnan()])


@pytest.mark.parametrize("window", [None, 20])
def test_rows_that_only_fill_a_chunk_up_are_zeros(window: int | None) -> None:
    """Whatever was in their memory: what follows them finds no NaN. The others have the bits that they have alone."""
    cases, shape = Cases(seed=5), BlockShape(4, 2, 64, 1e-5, SCALE)
    k_cache, v_cache, batch = cases.sequences([(3, 40), (1, 17)])
    positions = torch.tensor([37, 38, 39, 16, 0, 0])
    slots = torch.cat(
        [batch.block_tables[[0, 0, 0, 1], positions[:4] // 16].long() * 16 + positions[:4] % 16, -torch.ones(2).long()]
    )
    rope = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 512, "cpu")
    qkv, sinks = cases.normal(6, 8 * 64), cases.normal(4)
    filled = AttentionBatch(
        torch.tensor([0, 3, 4, 4], dtype=torch.int32),
        torch.tensor([40, 17, 0], dtype=torch.int32),
        torch.cat([batch.block_tables, batch.block_tables[:1]]),
    )

    def attended(rows: int, batch: AttentionBatch) -> torch.Tensor:
        caches = k_cache.clone(), v_cache.clone()
        return _attention.rope_attention(
            qkv[:rows], shape, rope, positions[:rows], caches, slots[:rows], batch, sinks, window
        )

    alone = attended(4, batch)
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote to is NaN then
    try:
        found = attended(6, filled)
    finally:
        torch.use_deterministic_algorithms(False)

    assert torch.equal(alone, found[:4])
    assert not found[4:].any()


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

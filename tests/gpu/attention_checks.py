"""What must hold of attention on a GPU. See `checks`."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor

from shoal.kernels import _attention, _rope
from shoal.kernels.attention import AttentionBatch, BlockShape, attention_torch
from shoal.kernels.rope import rope_tables
from tests.gpu.checks import Check, Setting, error, recorded, same
from tests.kernels import reference

SCALE = 0.125
EDGES = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 130, 255, 256, 257)
"""Contexts at which a block, a tile, a window or a split begins or ends."""

Spans = Sequence[tuple[int, int]]
"""(new queries, keys in all) of each sequence."""


def _heads(s: Setting) -> tuple[int, int]:
    """Of queries and of keys."""
    return (64, 8) if s.large else (2, 1)


def _error(s: Setting, seed: int, spans: Spans, windows: Sequence[int | None], few: tuple[int, int] = (2, 1)) -> float:
    """The largest error against one softmax over all scores in float64. `few` heads where shapes are small."""
    cases, (heads, kv_heads), found = s.cases(seed), (64, 8) if s.large else few, 0.0
    k_cache, v_cache, batch = cases.sequences(spans, kv_heads=kv_heads)
    q, sinks = cases.normal(sum(new for new, _ in spans), heads, 64), cases.normal(heads, dtype=torch.bfloat16)
    for window in windows:
        out = _attention.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
        expected = reference.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
        found = max(found, error(expected, out))
    return found


def attention_is_right(s: Setting) -> float:
    """Prompt, chunk and decode in one batch, windows and none."""
    return _error(s, 6, [(20, 20), (1, 150), (3, 170)], (None, 1, 128), few=(8, 2))


def edges_are_right(s: Setting) -> float:
    """One token behind contexts at every edge, and chunks that cross them."""
    decode = _error(s, 20, [(1, context) for context in EDGES[:: s.size(1, 4)]], (None, 128))
    chunks = [(min(5, context), context) for context in EDGES[3 :: s.size(1, 6)]]
    return max(decode, _error(s, 21, chunks, (None, 128)))


def long_contexts_are_right(s: Setting) -> float:
    """Decoding and a chunk where splits are near ones and where they are far ones: around 8,192 keys."""
    decode = _error(s, 22, [(1, 8193), (1, s.size(9500, 3)), (1, s.size(8192, 1))], (None, 128) if s.large else (None,))
    return max(decode, _error(s, 23, [(2, s.size(8193, 1050)), (1, 40)], (None,)))


def prompts_decode_to_the_same_bits(s: Setting) -> float:
    """A prompt at once, in chunks, and token by token as in decoding; full and sliding layers."""
    cases, (heads, kv_heads), length = s.cases(7), _heads(s), s.size(1500, 100)
    k_cache, v_cache, both = cases.sequences([(length, length), (2, 40)], kv_heads=kv_heads)
    q, sinks = cases.normal(length + 2, heads, 64), cases.normal(heads, dtype=torch.bfloat16)
    count = 0.0
    for window in (None, 128):
        whole = _attention.attention(q, k_cache, v_cache, both, sinks, window, SCALE)
        for lo, hi in ((0, 33), (33, length - 1), (length - 1, length), (64, 65)):
            chunk = AttentionBatch(
                torch.tensor([0, hi - lo], dtype=torch.int32, device=s.device),
                torch.tensor([hi], dtype=torch.int32, device=s.device),
                both.block_tables[:1],
            )
            part = _attention.attention(q[lo:hi], k_cache, v_cache, chunk, sinks, window, SCALE)
            count += same(f"queries {lo}..{hi}, window {window}", whole[lo:hi], part)
    return count


def tiles_agree(s: Setting) -> float:
    """Tiles of 64 and of 128 rows, and so other numbers of warps, over the same prompts."""
    cases, (heads, kv_heads), length = s.cases(24), _heads(s), s.size(700, 70)
    k_cache, v_cache, batch = cases.sequences([(length, length), (3, 140)], kv_heads=kv_heads)
    q, sinks = cases.normal(length + 3, heads, 64), cases.normal(heads, dtype=torch.bfloat16)
    count = 0.0
    for window in (None, 128):
        found = []
        for rows in (64, 128):
            with mock.patch.object(_attention, "_rows", return_value=rows):
                found.append(_attention.attention(q, k_cache, v_cache, batch, sinks, window, SCALE))
        count += same(f"window {window}", *found)
    return count


def splits_merge_to_the_same_bits(s: Setting) -> float:
    """A long context by one program per split, and by one program for all."""
    cases, (heads, kv_heads) = s.cases(8), _heads(s)
    k_cache, v_cache, batch = cases.sequences([(1, s.size(9000, 1100)), (1, 7)], kv_heads=kv_heads)
    q, sinks = cases.normal(2, heads, 64), cases.normal(heads, dtype=torch.bfloat16)
    split = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    for _ in range(s.size(50, 1)):  # whoever comes last merges: who that is differs from time to time
        again = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
        same("again", split, again)
    with mock.patch.object(_attention, "_shares", return_value=1):
        whole = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    error(attention_torch(q, k_cache, v_cache, batch, sinks, None, SCALE), whole)
    return same("split against whole", whole, split)


def _fused(s: Setting, seed: int, spans: Spans) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], AttentionBatch]:
    """(fused rows, positions, slots, caches, batch) of a step."""
    cases, (heads, kv_heads) = s.cases(seed), _heads(s)
    k_cache, v_cache, batch = cases.sequences(spans, kv_heads=kv_heads)
    positions = torch.cat([torch.arange(context - new, context) for new, context in spans]).to(s.device)
    rows = torch.tensor([i for i, (new, _) in enumerate(spans) for _ in range(new)], device=s.device)
    slots = batch.block_tables[rows, positions // 16].long() * 16 + positions % 16
    qkv = cases.normal(len(positions), (heads + 2 * kv_heads) * 64)
    return qkv, positions, slots, (k_cache, v_cache), batch


def one_call_is_its_launchers(s: Setting) -> float:
    """Rotated, stored and attended in one call or in three: outputs and caches bit for bit; one token each, and not."""
    (heads, kv_heads), count = _heads(s), 0.0
    shape, sinks = BlockShape(heads, kv_heads, 64, 1e-5, SCALE), s.cases(26).normal(heads, dtype=torch.bfloat16)
    rope = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 4096, s.device)
    for spans in ([(1, s.size(3000, 290)), (1, 16), (1, 17)], [(3, 40), (1, 17), (s.size(300, 2), 310)]):
        for window in (None, 128):
            qkv, positions, slots, caches, batch = _fused(s, 25, spans)
            other = caches[0].clone(), caches[1].clone()
            one = _attention.rope_attention(qkv, shape, rope, positions, caches, slots, batch, sinks, window)
            widths = [heads * 64, kv_heads * 64, kv_heads * 64]
            q, k, v = (x.contiguous().view(len(qkv), -1, 64) for x in torch.split(qkv, widths, dim=-1))
            _rope.apply_rope_(q, k, positions, *rope)
            _attention.write_kv(k, v, other[0], other[1], slots)
            three = _attention.attention(q, other[0], other[1], batch, sinks, window, SCALE)
            count += same(f"{spans[0]}, window {window}", three.flatten(1), one)
            for mine, theirs in zip(caches, other, strict=True):
                same("cache", theirs.nan_to_num(9.0), mine.nan_to_num(9.0))
    return count


def fillers_do_nothing(s: Setting) -> float:
    """Sequences without keys and tokens without a slot: zeros come out, no slot is written, others stay as they are."""
    (heads, kv_heads), spans = _heads(s), [(1, 40), (1, s.size(2000, 300))]
    shape, sinks = BlockShape(heads, kv_heads, 64, 1e-5, SCALE), s.cases(28).normal(heads, dtype=torch.bfloat16)
    rope = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 4096, s.device)
    qkv, positions, slots, caches, batch = _fused(s, 27, spans)
    before = caches[0].clone(), caches[1].clone()
    alone = _attention.rope_attention(qkv, shape, rope, positions, before, slots, batch, sinks, None)

    def filled(x: Tensor, value: int) -> Tensor:
        return torch.cat([x, x.new_full((2, *x.shape[1:]), value)])

    padded = AttentionBatch(
        torch.arange(5, dtype=torch.int32, device=s.device),
        filled(batch.context_lens, 0),
        filled(batch.block_tables, 0),
    )
    found = _attention.rope_attention(
        filled(qkv, 1), shape, rope, filled(positions, 0), caches, filled(slots, -1), padded, sinks, None
    )
    same("zeros", torch.zeros_like(found[2:]), found[2:])
    for mine, theirs in zip(caches, before, strict=True):
        same("cache", theirs.nan_to_num(9.0), mine.nan_to_num(9.0))
    return same("others", alone, found[:2])


def writing_keeps_bits(s: Setting) -> float:
    """Keys and values arrive unchanged, other slots stay zero."""
    k, v = s.cases(9).normal(3, 8, 64), s.cases(10).normal(3, 8, 64)
    k_cache, v_cache = (torch.zeros(4, 16, 8, 64, dtype=s.dtype, device=s.device) for _ in range(2))
    slots = torch.tensor([63, 0, 9], device=s.device)
    _attention.write_kv(k, v, k_cache, v_cache, slots)
    count = same("keys", k, k_cache.flatten(0, 1)[slots]) + same("values", v, v_cache.flatten(0, 1)[slots])
    assert int((k_cache != 0).any(-1).any(-1).sum()) == 3, "other slots were touched"
    return count


def a_recording_follows_the_lengths(s: Setting) -> float:
    """Recorded over short contexts and replayed over longer ones: what is launched knows shapes alone."""
    cases, (heads, kv_heads) = s.cases(29), _heads(s)
    spans = [(1, s.size(4000, 400)), (1, s.size(900, 30)), (1, 17)]
    k_cache, v_cache, batch = cases.sequences(spans, kv_heads=kv_heads)
    q, sinks, count = cases.normal(3, heads, 64), cases.normal(heads, dtype=torch.bfloat16), 0.0
    wanted, lengths, out = batch.context_lens.clone(), batch.context_lens, torch.empty_like(q)
    for window in (None, 128):

        def work(window: int | None = window) -> None:
            out.copy_(_attention.attention(q, k_cache, v_cache, batch, sinks, window, SCALE))

        lengths.fill_(5)
        replay = recorded(s, work)
        lengths.copy_(wanted)
        for _ in range(2):
            replay()
            expected = _attention.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
            count += same(f"window {window}", expected, out)
    return count


ALL: tuple[Check, ...] = (
    attention_is_right,
    edges_are_right,
    long_contexts_are_right,
    prompts_decode_to_the_same_bits,
    tiles_agree,
    splits_merge_to_the_same_bits,
    one_call_is_its_launchers,
    fillers_do_nothing,
    writing_keeps_bits,
    a_recording_follows_the_lengths,
)

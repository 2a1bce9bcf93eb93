"""What must hold of every Triton kernel once it is compiled: right, and the same bits in every batch.

Each check returns a number worth keeping (the largest error, or how many rows were compared) and raises AssertionError
if it does not hold. With `large` the shapes are those of gpt-oss-20b; without, a CPU's interpreter gets through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from shoal.kernels import _attention, _norm, _rope
from shoal.kernels.attention import AttentionBatch, attention_torch
from shoal.kernels.norm import rms_norm_torch
from shoal.kernels.rope import apply_rope_torch_, rope_tables
from tests.kernels import reference
from tests.kernels.cases import Cases

SCALE = 0.125


@dataclass(frozen=True, slots=True)
class Setting:
    device: str
    large: bool
    dtype: torch.dtype

    def cases(self, seed: int) -> Cases:
        return Cases(seed, self.dtype, self.device)

    def size(self, large: int, small: int) -> int:
        return large if self.large else small


Check = Callable[[Setting], float]


def error(expected: Tensor, found: Tensor, roundings: int = 1) -> float:
    """The largest error, relative for numbers above 1. More than bf16's last place, or fp32's sums, fails; where what
    was rounded is an input of further sums, say how often."""
    assert bool(torch.isfinite(found).all()), "not finite"
    wide = expected.double().cpu()
    largest = float(((found.double().cpu() - wide).abs() / wide.abs().clamp(min=1.0)).max())
    limit = roundings * 1e-2 if found.dtype == torch.bfloat16 else 5e-5
    assert largest <= limit, f"error {largest:.2e} above {limit:.0e}"
    return largest


def same(name: str, expected: Tensor, found: Tensor) -> float:
    """Bit for bit; returns how many numbers were compared."""
    differing = int((expected != found).sum())
    assert differing == 0, f"{name}: {differing} of {found.numel()} numbers differ in their bits"
    return float(found.numel())


def attention_is_right(s: Setting) -> float:
    """Prompt, chunk and decode in one batch, windows and none, against float64."""
    cases, heads, kv_heads = s.cases(6), s.size(64, 8), s.size(8, 2)
    k_cache, v_cache, batch = cases.sequences([(20, 20), (1, 150), (3, 170)], kv_heads=kv_heads)
    q, sinks = cases.normal(24, heads, 64), cases.normal(heads, dtype=torch.bfloat16)
    found = 0.0
    for window in (None, 1, 128):
        out = _attention.attention(q, k_cache, v_cache, batch, sinks, window, SCALE)
        found = max(found, error(reference.attention(q, k_cache, v_cache, batch, sinks, window, SCALE), out))
    return found


def prompts_decode_to_the_same_bits(s: Setting) -> float:
    """A prompt at once, in chunks, and token by token as in decoding; full and sliding layers."""
    cases, heads, kv_heads, length = s.cases(7), s.size(64, 8), s.size(8, 2), s.size(1500, 100)
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


def splits_merge_to_the_same_bits(s: Setting) -> float:
    """A long context by one program per split, and by one program for all."""
    cases, heads, kv_heads = s.cases(8), s.size(64, 8), s.size(8, 2)
    k_cache, v_cache, batch = cases.sequences([(1, s.size(5000, 2100)), (1, 7)], kv_heads=kv_heads)
    q, sinks = cases.normal(2, heads, 64), cases.normal(heads, dtype=torch.bfloat16)
    split = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    with mock.patch.object(_attention, "_shares", return_value=1):
        whole = _attention.attention(q, k_cache, v_cache, batch, sinks, None, SCALE)
    error(attention_torch(q, k_cache, v_cache, batch, sinks, None, SCALE), whole)
    return same("split against whole", whole, split)


def writing_keeps_bits(s: Setting) -> float:
    """Keys and values arrive unchanged, other slots stay zero."""
    k, v = s.cases(9).normal(3, 8, 64), s.cases(10).normal(3, 8, 64)
    k_cache, v_cache = (torch.zeros(4, 16, 8, 64, dtype=s.dtype, device=s.device) for _ in range(2))
    slots = torch.tensor([63, 0, 9], device=s.device)
    _attention.write_kv(k, v, k_cache, v_cache, slots)
    count = same("keys", k, k_cache.flatten(0, 1)[slots]) + same("values", v, v_cache.flatten(0, 1)[slots])
    assert int((k_cache != 0).any(-1).any(-1).sum()) == 3, "other slots were touched"
    return count


def row_operations_are_right(s: Setting) -> float:
    """Norm and rope against their twins."""
    width = s.size(2880, 96)
    x, weight = s.cases(12).normal(9, width), s.cases(13).normal(width, dtype=torch.bfloat16)
    y = _norm.rms_norm(x, weight, 1e-5)
    found = error(rms_norm_torch(x, weight, 1e-5), y)
    same("norm alone", y[5], _norm.rms_norm(x[5:6], weight, 1e-5)[0])
    positions = torch.tensor([0, 1, 7, 4000, 5, 6, 90, 8, 9], device=s.device)
    cos, sin = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 4096, s.device)
    tensors = [s.cases(14).normal(9, heads, 64) for heads in (64, 8, 64, 8)]
    _rope.apply_rope_(tensors[0], tensors[1], positions, cos, sin)
    apply_rope_torch_(tensors[2], tensors[3], positions, cos, sin)
    return max(found, error(tensors[2], tensors[0]), error(tensors[3], tensors[1]))


ALL: tuple[Check, ...] = (
    attention_is_right,
    prompts_decode_to_the_same_bits,
    splits_merge_to_the_same_bits,
    writing_keeps_bits,
    row_operations_are_right,
)

"""Every launch of the attention kernels that a step of gpt-oss can make, on tensors without data."""

from __future__ import annotations

import torch

from shoal.kernels import _attention, _rope
from shoal.kernels.attention import AttentionBatch, BlockShape

# (tokens, sequences, window): decoding with shared keys, decoding alone, prompts, and few tokens behind long contexts
STEPS = [(1, 1, None), (64, 64, None), (4, 4, 128), (2048, 2, None), (2048, 2, 128), (24, 4, None), (24, 4, 128)]


def launch_attention() -> None:
    """Every launcher once per kernel variant, with the shapes of both models' attention."""

    def t(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def ints(*shape: int) -> torch.Tensor:
        return t(*shape, dtype=torch.int32)

    def longs(*shape: int) -> torch.Tensor:
        return t(*shape, dtype=torch.int64)

    cache, shape = (t(4096, 16, 8, 64), t(4096, 16, 8, 64)), BlockShape(64, 8, 64, 1e-5, 0.125)
    rope = t(131072, 32, dtype=torch.float32), t(131072, 32, dtype=torch.float32)
    for tokens, sequences, window in STEPS:
        batch = AttentionBatch(ints(sequences + 1), ints(sequences), ints(sequences, 2048))
        qkv = t(tokens, 80 * 64)
        _attention.rope_attention(qkv, shape, rope, longs(tokens), cache, longs(tokens), batch, t(64), window)
    _attention.write_kv(t(64, 8, 64), t(64, 8, 64), *cache, longs(64))
    _rope.apply_rope_(t(64, 64, 64), t(64, 8, 64), longs(64), *rope)

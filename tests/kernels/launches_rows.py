"""Launches of rope and attention at the shapes of gpt-oss-20b, for compiling ahead of time."""

from __future__ import annotations

import torch

from shoal.kernels import _attention, _rope
from shoal.kernels.attention import AttentionBatch
from tests.kernels.launches_moe import ints, meta


def launch_rows() -> None:
    tokens = 64
    table = meta(131072, 32, dtype=torch.float32)
    positions = meta(tokens, dtype=torch.int64)
    _rope.apply_rope_(meta(tokens, 64, 64), meta(tokens, 8, 64), positions, table, table)
    cache = meta(4096, 16, 8, 64)
    _attention.write_kv(meta(tokens, 8, 64), meta(tokens, 8, 64), cache, cache, positions)
    for sequences, window in ((2, None), (tokens, 128)):  # few: split and merged
        batch = AttentionBatch(ints(sequences + 1), ints(sequences), ints(sequences, 256))
        _attention.attention(meta(sequences, 64, 64), cache, cache, batch, meta(64), window, 0.125)

"""Launches of the other kernels at the shapes of gpt-oss-20b, for compiling ahead of time."""

from __future__ import annotations

import torch

from shoal.kernels import _attention, _dense, _norm, _rope
from shoal.kernels.attention import AttentionBatch
from shoal.kernels.target import Chip
from tests.kernels.launches_moe import HIDDEN, ints, meta


def launch(_chip: Chip) -> None:
    tokens = 64
    x = meta(tokens, HIDDEN)
    _dense.linear(x, meta(5120, HIDDEN), meta(5120), None)
    _dense.linear(x, meta(201088, HIDDEN), None, torch.float32)
    _norm.rms_norm(x, meta(HIDDEN), 1e-5)
    table = meta(131072, 32, dtype=torch.float32)
    positions = meta(tokens, dtype=torch.int64)
    _rope.apply_rope_(meta(tokens, 64, 64), meta(tokens, 8, 64), positions, table, table)
    cache = meta(4096, 16, 8, 64)
    _attention.write_kv(meta(tokens, 8, 64), meta(tokens, 8, 64), cache, cache, positions)
    for sequences, window in ((2, None), (tokens, 128)):  # few: split and merged
        batch = AttentionBatch(ints(sequences + 1), ints(sequences), ints(sequences, 256))
        _attention.attention(meta(sequences, 64, 64), cache, cache, batch, meta(64), window, 0.125)

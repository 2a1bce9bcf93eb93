"""Seeded random weights, a piece at a time.

Initialisation is of unit gain, with real biases and sinks, so that every term of the mathematics shows in the logits:
transformers' own (standard deviation 0.02, biases zero) would hide a forgotten bias or a wrong clamp. Expert weights
are normal deviates quantised to MXFP4, as training to MXFP4 leaves them.

Every piece draws from its own generator, keyed by seed, tensor and position: the same bytes whatever the order, the
threads or the layout. Bytes are the same on every machine with one version of numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from shoal.kernels import mxfp4
from shoal.workers.checkpoint.layout import GROUP, hf_specs
from shoal.workers.checkpoint.synthetic import spread
from shoal.workers.model.config import ModelConfig

# Values drawn at once: what fits in a core's cache. Part of what a seed means: changing it changes every checkpoint.
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [first, last) of a weight seen as a matrix of `columns`; `name` lacks `_blocks` where it is quantised."""

    name: str
    first: int
    last: int
    columns: int
    mean: float
    deviation: float
    quantised: bool


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Every weight of the model, cut into pieces of about a quarter of a million values."""
    for spec in hf_specs(config):
        if spec.name.endswith("_scales"):
            continue  # drawn together with their blocks
        quantised = spec.name.endswith("_blocks")
        columns = spec.shape[-2] * GROUP if quantised else spec.shape[-1]
        rows = prod(spec.shape[:2]) if quantised else prod(spec.shape[:-1])
        values = spread(spec.name, columns)
        name = spec.name.removesuffix("_blocks")
        step = max(1, _PIECE // columns)
        for first in range(0, rows, step):
            yield Piece(name, first, min(first + step, rows), columns, values.mean, values.deviation, quantised)


def draw(piece: Piece, seed: int) -> list[tuple[str, int, Tensor]]:
    """The piece's stored tensors: (HF name, byte offset in that tensor, values), bf16 or MXFP4 bytes."""
    key = hashlib.sha256(f"{seed} {piece.name} {piece.first}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key[:16], "little")))
    rows = piece.last - piece.first
    values = torch.from_numpy(generator.standard_normal((rows, piece.columns), dtype=np.float32))
    values = values.mul_(piece.deviation).add_(piece.mean)
    if not piece.quantised:
        return [(piece.name, piece.first * piece.columns * 2, values.to(torch.bfloat16))]
    blocks, scales = mxfp4.quantize(values)
    groups = piece.columns // GROUP
    return [
        (f"{piece.name}_blocks", piece.first * groups * (GROUP // 2), blocks),
        (f"{piece.name}_scales", piece.first * groups, scales),
    ]

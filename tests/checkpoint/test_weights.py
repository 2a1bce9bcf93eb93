"""`shoal.cluster.checkpoint.weights`."""

from __future__ import annotations

import torch

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.checkpoint.shards import nbytes
from shoal.cluster.checkpoint.weights import draw, pieces
from shoal.kernels import mxfp4
from shoal.workers.checkpoint.layout import hf_specs
from tests.checkpoint.broken import MICRO

TINY = PRESETS["tiny"].config()


def _find(name: str, first: int = 0) -> torch.Tensor:
    piece = next(piece for piece in pieces(TINY) if piece.name == name and piece.first == first)
    return draw(piece, 0)[0][2]


def test_pieces_cover_every_byte_once() -> None:
    """The drawn bytes of each tensor follow one another without gap and fill it."""
    config = MICRO.config()
    ends: dict[str, int] = {}
    for piece in pieces(config):
        for name, offset, values in draw(piece, 0):
            assert offset == ends.get(name, 0)
            ends[name] = offset + values.nbytes
    assert ends == {spec.name: nbytes(spec) for spec in hf_specs(config)}


def test_large_tensors_are_cut() -> None:
    """Not even the embedding of the 120b is ever whole in memory."""
    largest = max((piece.last - piece.first) * piece.columns for piece in pieces(PRESETS["120b"].config()))
    assert largest <= 1 << 18


def test_a_seed_decides() -> None:
    """The same seed gives the same bytes, another seed others; tensors and pieces differ among themselves."""
    drawn = [piece for piece in pieces(TINY) if piece.name == "model.layers.0.mlp.experts.down_proj"]
    assert len(drawn) > 1
    first, second = drawn[:2]
    assert torch.equal(draw(first, 0)[0][2], draw(first, 0)[0][2])
    assert not torch.equal(draw(first, 0)[0][2], draw(first, 1)[0][2])
    assert not torch.equal(draw(first, 0)[0][2], draw(second, 0)[0][2])


def test_every_term_shows() -> None:
    """Norms lie around one; biases and sinks are not zero; projections keep the size of what they sum."""
    norm = _find("model.norm.weight").float()
    assert abs(norm.mean() - 1) < 0.05
    assert 0.05 < norm.std() < 0.15
    assert _find("model.layers.1.self_attn.sinks").float().std() > 0.3
    assert 0.05 < _find("model.layers.1.mlp.experts.down_proj_bias").float().std() < 0.15
    out = _find("model.layers.1.self_attn.o_proj.weight").float()
    assert abs(out.std() * out.shape[1] ** 0.5 - 1) < 0.05


def test_expert_weights_use_the_format() -> None:
    """Quantised weights have the wanted spread, use all codes, and no scale is the NaN byte."""
    piece = next(piece for piece in pieces(TINY) if piece.quantised)
    (_, _, blocks), (_, _, scales) = draw(piece, 0)
    values = mxfp4.dequantize(blocks, scales, torch.float32)
    assert abs(values.std() * piece.columns**0.5 - 1.5) < 0.05
    assert set(range(16)) == set(torch.cat([blocks & 15, blocks >> 4]).flatten().tolist())
    assert int(scales.max()) < 255

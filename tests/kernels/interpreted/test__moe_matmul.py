"""The Triton grouped matmuls in the interpreter, against their twins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shoal.kernels import _moe_matmul, chips, mxfp8, target
from shoal.kernels.chips import CHIPS, MoeTile
from shoal.kernels.expert_rows import expert_rows, expert_rows_torch
from shoal.kernels.fragments import permute
from shoal.kernels.moe_matmul import down_torch, gate_up_torch, prepare
from shoal.kernels.mxfp4 import ExpertWeights, dequantize
from shoal.kernels.mxfp8 import Bf16Weights, Mxfp8Weights
from tests.kernels.cases import Cases
from tests.kernels.interpreted.closeness import DTYPES, assert_close

LIMIT, ALPHA = 7.0, 1.702
TILES = {tile: f"{chip.name} {tile.rows}x{tile.n}x{tile.k}" for chip in CHIPS.values() for tile in chip.moe_tiles}


def use(tile: MoeTile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this tile the only one."""
    monkeypatch.setattr(chips, "WITHOUT_GPU", replace(CHIPS["sm90"], moe=(tile,), moe_narrow=None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("counts", "width", "rows"),
    [([33, 0, 7], 96, 140), ([1], 32, 2), ([2, 1, 1], 160, 64), ([0, 65], 64, 258)],
)
def test_gate_up_equals_its_twin(counts: list[int], width: int, rows: int, dtype: torch.dtype) -> None:
    """Full and ragged tiles in every direction, idle experts, one expert alone."""
    cases = Cases(seed=len(counts), dtype=dtype)
    x, w = cases.normal(20, width), cases.experts(len(counts), rows, width)
    chosen, offsets = cases.assignment(20, counts)

    expected = gate_up_torch(x, chosen, offsets, w, limit=LIMIT, alpha=ALPHA)

    assert_close(expected, _moe_matmul.gate_up(x, chosen, offsets, permute(w), limit=LIMIT, alpha=ALPHA))


@pytest.mark.parametrize("dtype", DTYPES)
def test_down_equals_its_twin(dtype: torch.dtype) -> None:
    """No gather, no activation, the bias once; a row may be stored in another place."""
    cases = Cases(seed=7, dtype=dtype)
    h, w = cases.normal(40, 96), cases.experts(3, 75, 96)
    _, offsets = cases.assignment(1, [33, 0, 7])
    places = torch.randperm(40, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    expected = down_torch(h, offsets, w)

    assert_close(expected, _moe_matmul.down(h, offsets, permute(w)))
    assert_close(expected, _moe_matmul.down(h, offsets, permute(w), places=places)[places.long()])


@pytest.mark.parametrize("tile", TILES, ids=list(TILES.values()))
def test_every_tile_of_every_chip_is_right(tile: MoeTile, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows, outputs and inputs than one tile has, none of them a multiple; all tiles give the same bits."""
    use(tile, monkeypatch)
    cases = Cases(seed=3)
    x, w = cases.normal(30, 160), cases.experts(2, min(tile.n + 34, 140), 160)
    chosen, offsets = cases.assignment(30, [tile.rows + 3, 5])

    found = _moe_matmul.gate_up(x, chosen, offsets, permute(w), limit=LIMIT, alpha=ALPHA)

    assert_close(gate_up_torch(x, chosen, offsets, w, limit=LIMIT, alpha=ALPHA), found)
    use(CHIPS["sm90"].moe[0], monkeypatch)
    assert torch.equal(_moe_matmul.gate_up(x, chosen, offsets, permute(w), limit=LIMIT, alpha=ALPHA), found)


def other_formats(w: ExpertWeights) -> list[Bf16Weights | Mxfp8Weights]:
    """The same numbers, not quantised and in 8 bits (which hold every MXFP4 number, or nearly)."""
    values = dequantize(w.blocks, w.scales, torch.float32)
    return [Bf16Weights(values.bfloat16(), w.bias), Mxfp8Weights(*mxfp8.quantize(values), w.bias)]


@pytest.mark.parametrize("which", [0, 1], ids=["bf16", "mxfp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_formats_go_through_the_same_launchers(which: int, dtype: torch.dtype) -> None:
    """Both projections, against the twin of the same weights."""
    cases = Cases(seed=5, dtype=dtype)
    w = other_formats(cases.experts(3, 140, 96))[which]
    x = cases.normal(20, 96)
    rows, offsets = cases.assignment(20, [17, 0, 5])

    assert_close(
        gate_up_torch(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA),
        _moe_matmul.gate_up(x, rows, offsets, w, limit=LIMIT, alpha=ALPHA),
    )
    h = cases.normal(22, 96)
    assert_close(down_torch(h, offsets, w), _moe_matmul.down(h, offsets, w))


def test_every_code_is_decoded_at_every_scale() -> None:
    """An identity for activations lays the decoded weights open: exact, subnormals included."""
    w = Cases(seed=8).experts(1, 16, 32)
    codes = torch.arange(16, dtype=torch.uint8)
    w.blocks[0, :, 0, :] = (codes | codes.flip(0) << 4)[None]
    w.scales[0, :, 0] = torch.tensor([0, 1, 2, 3, 20, 64, 100, 120, 124, 125, 126, 127, 128, 0, 127, 1])
    bare = replace(w, bias=torch.zeros_like(w.bias))
    offsets = torch.tensor([0, 32], dtype=torch.int32)

    found = _moe_matmul.down(torch.eye(32), offsets, permute(bare))

    assert torch.equal(down_torch(torch.eye(32), offsets, bare), found)


def test_a_row_never_depends_on_its_batch() -> None:
    """The last of 34 rows of an expert, alone in a launch of its own, with another tile: the same bits."""
    cases = Cases(seed=9)
    x, w = cases.normal(34, 96), permute(cases.experts(2, 64, 96))
    rows = torch.arange(34, dtype=torch.int32)
    many = _moe_matmul.gate_up(x, rows, torch.tensor([0, 0, 34], dtype=torch.int32), w, limit=LIMIT, alpha=ALPHA)

    one = _moe_matmul.gate_up(x, rows[33:], torch.tensor([0, 0, 1], dtype=torch.int32), w, limit=LIMIT, alpha=ALPHA)

    assert torch.equal(many[33], one[0])


def test_no_rows_launch_nothing() -> None:
    """An idle rank takes part with zero tokens."""
    cases = Cases()

    out = _moe_matmul.down(cases.normal(0, 64), torch.zeros(3, dtype=torch.int32), permute(cases.experts(2, 20, 64)))

    assert out.shape == (0, 20)


@pytest.mark.parametrize("tokens", [0, 2, 70])
def test_expert_rows_equal_their_twin(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ids to rows in the ids' order, few tokens and many, with experts that lie elsewhere; loads counted."""
    cases = Cases(seed=tokens)
    x, up, down = cases.normal(tokens, 64), cases.experts(3, 128, 64), cases.experts(3, 64, 64)
    slot_of = torch.tensor([1, 0, -1, 2, -1], dtype=torch.int32)
    g = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(5, generator=g)[:4] for _ in range(tokens)] or [torch.empty(0, 4)]).to(
        torch.int32
    )
    ids = torch.where((ids == 2) | (ids == 4), -1, ids).view(tokens, 4)
    loads, counted = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    gates = {"limit": LIMIT, "alpha": ALPHA}
    monkeypatch.setenv(target.OVERRIDE, "torch")
    expected = expert_rows_torch(x, ids, slot_of, up, down, loads, **gates)
    monkeypatch.setenv(target.OVERRIDE, "triton")

    found = expert_rows(x, ids, slot_of, prepare(up), prepare(down), counted, limit=LIMIT, alpha=ALPHA)

    assert_close(expected, found[: len(expected)])
    assert torch.equal(loads, counted)

"""The small Triton kernels in the interpreter, against their twins: `_dense`, `_norm`, `_norm_linear`, `_rope`."""

from __future__ import annotations

import pytest
import torch
import triton

from shoal.kernels import _dense, _norm, _norm_linear, _rope
from shoal.kernels.chips import CHIPS, Chip
from shoal.kernels.dense import linear_torch
from shoal.kernels.norm import rms_norm_torch
from shoal.kernels.rope import apply_rope_torch_, rope_tables
from tests.kernels.cases import Cases
from tests.kernels.interpreted.closeness import DTYPES, assert_close


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n", "k", "bias"), [(0, 5, 32, True), (1, 75, 96, True), (70, 130, 200, False)])
def test_linear_equals_its_twin(rows: int, n: int, k: int, bias: bool, dtype: torch.dtype) -> None:
    """Full and ragged tiles, with and without bias and residual."""
    x = Cases(seed=rows, dtype=dtype).normal(rows, k)
    weight, b = Cases(seed=1).normal(n, k).bfloat16(), Cases(seed=2).normal(n).bfloat16() if bias else None
    residual = Cases(seed=3, dtype=dtype).normal(rows, n)

    assert_close(linear_torch(x, weight, b), _dense.linear(x, weight, b))
    assert_close(linear_torch(x, weight, b, torch.float32), _dense.linear(x, weight, b, torch.float32))
    assert_close(linear_torch(x, weight, b, None, residual), _dense.linear(x, weight, b, None, residual))


def test_a_row_of_linear_never_depends_on_its_batch() -> None:
    """The last of 70 rows alone. In whole numbers: the interpreter's own products, numpy's, round by their shapes."""
    g = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-9, 9, (rows, 200), generator=g).float() for rows in (70, 20))

    many = _dense.linear(x, weight.bfloat16(), None)

    assert torch.equal(x @ weight.T, many)
    assert torch.equal(many[69], _dense.linear(x[69:], weight.bfloat16(), None)[0])


@pytest.mark.parametrize("rows", [1, 3, 70, 1000])
@pytest.mark.parametrize("n", [130, 2880])
def test_every_tiling_gives_the_product(rows: int, n: int) -> None:
    """Whatever tile serves a batch: empty weight rows, several token tiles, groups of them that are not full."""
    x, weight = Cases(seed=rows).normal(rows, 64), Cases(seed=4).normal(n, 64).bfloat16()

    assert_close(linear_torch(x[-2:], weight, None), _dense.linear(x, weight, None)[-2:])


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("n", [32, 2880, 5120, 201088])
def test_a_tile_fits_its_chip(n: int, chip: Chip) -> None:
    """Shared memory for two stages at least, whole 16-byte stores, and no more rows than the tile has."""
    for rows in (1, 16, 17, 64, 65, 500, 8192):
        tile = _dense.tiling(rows, n, chip)
        assert tile.live <= tile.weights
        assert tile.live % 8 == 0
        assert tile.stage_bytes * (tile.stages if tile.stages > 2 else 1) <= chip.shared_bytes


@pytest.mark.parametrize("n", [2880, 5120])
def test_a_small_batch_uses_the_whole_chip(n: int) -> None:
    """One wave of programs on at least nine tenths of the multiprocessors reads the projections' weights."""
    programs = triton.cdiv(n, _dense.tiling(1, n, CHIPS["sm90"]).live)

    assert 0.9 * CHIPS["sm90"].multiprocessors <= programs <= CHIPS["sm90"].multiprocessors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 33, 256])
def test_rms_norm_equals_its_twin(width: int, dtype: torch.dtype) -> None:
    """Widths that fill a power of two and that do not, all rows and some of them."""
    x, weight = Cases(seed=5, dtype=dtype).normal(3, width), Cases(seed=6).normal(width).bfloat16()
    rows = torch.tensor([2, 0, 2, 1])

    assert_close(rms_norm_torch(x, weight, 1e-5), _norm.rms_norm(x, weight, 1e-5))
    assert_close(rms_norm_torch(x, weight, 1e-5, rows), _norm.rms_norm(x, weight, 1e-5, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "n", "k", "bias"), [(0, 5, 32, True), (1, 20, 200, False), (9, 75, 96, True)])
def test_norm_linear_is_its_two_kernels(tokens: int, n: int, k: int, bias: bool, dtype: torch.dtype) -> None:
    """The normed rows bit for bit, and their product with the weight."""
    x, norm = Cases(seed=tokens, dtype=dtype).normal(tokens, k), Cases(seed=2).normal(k).bfloat16()
    weight, b = Cases(seed=1).normal(n, k).bfloat16(), Cases(seed=3).normal(n).bfloat16() if bias else None

    normed, out = _norm_linear.norm_linear(x, norm, 1e-5, weight, b)

    assert torch.equal(_norm.rms_norm(x, norm, 1e-5), normed)
    assert_close(linear_torch(normed, weight, b, torch.float32), out)


def test_norm_linear_of_some_rows() -> None:
    """Those named, in the order named; for a long weight too."""
    x, norm, weight = Cases(seed=1).normal(5, 64), Cases(seed=2).normal(64), Cases(seed=3).normal(300, 64).bfloat16()
    rows = torch.tensor([4, 0, 4])

    normed, out = _norm_linear.norm_linear(x, norm, 1e-5, weight, None, torch.float32, rows)

    assert torch.equal(_norm.rms_norm(x, norm, 1e-5)[rows], normed)
    assert_close(linear_torch(normed, weight, None), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 24])
def test_rope_equals_its_twin(head_dim: int, dtype: torch.dtype) -> None:
    """In place, queries and keys, heads that are no power of two."""
    cases = Cases(seed=7, dtype=dtype)
    positions = torch.tensor([0, 1, 7, 100, 5])
    cos, sin = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, head_dim, 128, "cpu")
    tensors = [cases.normal(5, heads, head_dim) for heads in (6, 2, 6, 2)]

    _rope.apply_rope_(tensors[0], tensors[1], positions, cos, sin)
    apply_rope_torch_(tensors[2], tensors[3], positions, cos, sin)

    assert_close(tensors[2], tensors[0])
    assert_close(tensors[3], tensors[1])

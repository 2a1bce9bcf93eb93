"""What must hold of the kernels around attention and experts once they are compiled: projections, norms, sampling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from shoal.kernels import _dense, _norm, _norm_linear, _sampling
from shoal.kernels._dense import Tiling
from shoal.kernels.chips import chip_for
from shoal.kernels.dense import linear_torch
from shoal.kernels.norm import rms_norm_torch
from shoal.kernels.sampling import sample_torch, settings
from tests.gpu.checks import Check, Setting, error, recorded, same
from tests.kernels import reference

EPS = 1e-5


def _layer(s: Setting, seed: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """(weight, bias) of realistic size."""
    weight = s.cases(seed).normal(n, k, dtype=torch.bfloat16) / k**0.5
    return weight, s.cases(seed + 1).normal(n, dtype=torch.bfloat16)


def projections_are_right(s: Setting) -> float:
    """QKV, and the out-projection with its residual, against float64 and the twin; few tokens and many."""
    worst = 0.0
    for rows in (1, 16, 40, s.size(300, 70)):
        for n, k in ((s.size(5120, 130), s.size(2880, 96)), (s.size(2880, 75), s.size(4096, 128))):
            x, residual = s.cases(rows).normal(rows, k), s.cases(n).normal(rows, n)
            weight, bias = _layer(s, 3, n, k)
            y = _dense.linear(x, weight, bias, torch.float32, residual)
            worst = max(worst, error(reference.linear(x, weight, bias) + residual.cpu().double(), y))
            worst = max(worst, error(linear_torch(x[:2], weight, bias, None, residual[:2]).float(), y[:2].to(s.dtype)))
    return worst


def every_tile_gives_the_same_bits(s: Setting) -> float:
    """All tiles that serve any batch, and some that serve none, on the same 300 rows."""
    rows, n, chip = s.size(300, 40), s.size(2880, 75), chip_for(torch.empty(0, device=s.device))
    count = 0.0
    for k in (s.size(2880, 96), s.size(4096, 128)):
        x, residual = s.cases(k).normal(rows, k), s.cases(5).normal(rows, n)
        weight, bias = _layer(s, 6, n, k)
        expected = _dense.linear(x, weight, bias, torch.float32, residual)
        for tile in _tiles(s):
            if tile.stage_bytes * tile.stages <= chip.shared_bytes:
                found = _dense.linear(x, weight, bias, torch.float32, residual, tile)
                count += same(str(tile), expected, found)
    return count


def _tiles(s: Setting) -> Iterator[Tiling]:
    chip = chip_for(torch.empty(0, device=s.device))
    served = {_dense.tiling(rows, n, chip) for rows in (1, 20, 64, 100, 500, 8192) for n in (128, 2880, 5120, 201088)}
    yield from sorted(served, key=str)
    if chip.one_tile:
        return
    for tokens, live, k in itertools.product((16, 64), (16, 64), (64, 128)):
        yield Tiling(64, live, tokens, k, 4, 3)


def projected_rows_are_independent(s: Setting) -> float:
    """The rows of a batch in other batches: alone, in small ones, and in halves that cut the tiles elsewhere."""
    rows, k, n = s.size(2000, 70), s.size(2880, 96), s.size(5120, 130)
    x, (weight, bias) = s.cases(7).normal(rows, k), _layer(s, 8, n, k)
    many = _dense.linear(x, weight, bias)
    spans = [(0, 1), (63, 64), (rows - 1, rows), (5, 10), (3, 36), (1, 65), (0, rows // 2), (37, rows)]
    return sum(same(f"{lo}..{hi}", many[lo:hi], _dense.linear(x[lo:hi], weight, bias)) for lo, hi in spans)


def norms_are_right(s: Setting) -> float:
    """Against float64 and the twin, gathered and not, and every row alone with the same bits."""
    width = s.size(2880, 96)
    x, weight = s.cases(9).normal(9, width), s.cases(10).normal(width, dtype=torch.bfloat16)
    wanted = torch.tensor([8, 0, 8, 3], device=s.device)
    y, some = _norm.rms_norm(x, weight, EPS), _norm.rms_norm(x, weight, EPS, wanted)
    same("gathered", y[wanted], some)
    for row in range(9):
        same("alone", y[row], _norm.rms_norm(x[row : row + 1], weight, EPS)[0])
    return max(error(reference.rms_norm(x, weight, EPS), y), error(rms_norm_torch(x, weight, EPS), y))


def the_router_is_its_two_kernels(s: Setting) -> float:
    """Normed rows and logits bit for bit, for one token to more than one kernel serves, 32 and 128 experts."""
    width, count = s.size(2880, 96), 0.0
    batches = (1, 5, 64, 1024, 1500) if s.large else (1, 5, 9)
    for tokens, experts in itertools.product(batches, (32, s.size(128, 40))):
        x, norm = s.cases(tokens).normal(tokens, width), s.cases(11).normal(width, dtype=torch.bfloat16)
        weight, bias = _layer(s, 12, experts, width)
        normed, logits = _norm_linear.norm_linear(x, norm, EPS, weight, bias)
        expected = _norm.rms_norm(x, norm, EPS)
        count += same("normed", expected, normed)
        count += same("logits", _dense.linear(expected, weight, bias, torch.float32), logits)
    return count


def sampling_is_its_twin(s: Setting) -> float:
    """Every way to choose, over the whole vocabulary with ties: tokens, totals and the likeliest, in whole numbers."""
    vocabulary = s.size(201088, 4200)
    ways = itertools.product((0.0, 0.6, 1.0), ((0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.95, 0.0), (9, 0.5, 0.02)), (-1, 0))
    hows = [settings(t, 0.618 - 0.1 * t, *kept, mask) for t, kept, mask in ways][:: s.size(1, 7)]
    logits = s.cases(13).normal(len(hows), vocabulary, dtype=torch.float32) * 3
    logits[:, ::7] = (logits[:, ::7] * 4).round() / 4  # many ties
    masks = s.cases(14).normal(1, -(-vocabulary // 32), dtype=torch.float32).view(torch.int32)
    how = torch.tensor(hows, device=s.device)
    found = _sampling.sample(logits, how, masks, top_k=True, top_p=True, logprobs=20)
    twin = sample_torch(logits.cpu(), how.cpu(), masks.cpu(), top_k=True, top_p=True, logprobs=20)
    for name, mine, theirs in zip(found._fields, twin, found, strict=True):
        same(name, mine, theirs.cpu())
    for row in range(0, len(hows), s.size(1, 3)):
        alone = _sampling.sample(
            logits[row : row + 1], how[row : row + 1], masks, top_k=True, top_p=True, logprobs=None
        )
        same("alone", found.ids[row], alone.ids[0])
    return float(len(hows))


def a_recording_reads_what_lies_there(s: Setting) -> float:
    """Norm, projection, router and sampling, recorded once and replayed over other inputs, with the same bits."""
    width, experts = s.size(2880, 96), s.size(128, 40)
    rows, filters = s.size(5, 2), {"top_k": s.large, "top_p": s.large}  # the interpreter looks for filters for long
    x, norm = s.cases(15).normal(rows, width), s.cases(16).normal(width, dtype=torch.bfloat16)
    (qkv, qkv_bias), (router, router_bias) = _layer(s, 17, s.size(5120, 130), width), _layer(s, 19, experts, width)
    how = torch.tensor([settings(1.0, 0.1 * i, 4, 0.9) for i in range(rows)], device=s.device)

    def step() -> tuple[Tensor, ...]:
        projected = _dense.linear(_norm.rms_norm(x, norm, EPS), qkv, qkv_bias)
        _, logits = _norm_linear.norm_linear(x, norm, EPS, router, router_bias)
        return projected, logits, _sampling.sample(logits, how, None, **filters, logprobs=None).ids

    found = step()

    def work() -> None:
        for into, value in zip(found, step(), strict=True):
            into.copy_(value)

    replay = recorded(s, work)
    x.copy_(s.cases(21).normal(rows, width))
    replay()
    return sum(same("replayed", expected, mine) for expected, mine in zip(step(), found, strict=True))


ALL: tuple[Check, ...] = (
    projections_are_right,
    every_tile_gives_the_same_bits,
    projected_rows_are_independent,
    norms_are_right,
    the_router_is_its_two_kernels,
    sampling_is_its_twin,
    a_recording_reads_what_lies_there,
)

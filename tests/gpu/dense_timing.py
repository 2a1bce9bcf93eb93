"""Times of the kernels around attention and experts at the shapes of gpt-oss, each beside the vendor's library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shoal.kernels import _dense, _norm_linear, _routing, _sampling
from shoal.kernels._dense import Tiling
from shoal.kernels.chips import chip_for
from shoal.kernels.sampling import settings
from tests.gpu import stopwatch
from tests.gpu.stopwatch import copy_tb_s, drawn, microseconds

BATCHES = (1, 4, 16, 32, 64, 128, 256, 1024, 4096, 8192)
HIDDEN, HEADS, QKV, VOCABULARY, TOP_K = 2880, 4096, 5120, 201088, 4
EPS = 1e-5
GOAL = 0.9  # of the vendor's speed at least
_DECODED = 256  # rows that logits are wanted of, at most
_CACHE = 200_000_000  # bytes of weights that calls take in turn, so that each finds its own in memory, not in the L2


Calls = Sequence[Callable[[], object]]


def rows(until: float) -> Iterator[dict[str, Any]]:
    """Rows of the record, one after another, until the clock (time.monotonic) says `until`."""
    copy = copy_tb_s()
    yield {"case": "copy", "value": round(copy, 3), "unit": "TB/s"}
    for part in (_projections, _routers, _unembeddings, _samplers, _sums):
        for batch in BATCHES:
            if time.monotonic() > until:
                yield {"case": f"{part.__name__} batch {batch} and more", "skipped": "the time given was over"}
                break
            yield from part(batch, copy)
        torch.cuda.empty_cache()


def tiles(until: float) -> Iterator[dict[str, Any]]:
    """Other tiles than those chosen, for the next choice."""
    for batch in (1, 16, 32, 64, 256, 8192):
        for row in _tilings(batch):
            if time.monotonic() > until:
                yield {"case": f"tiles of batch {batch} and more", "skipped": "the time given was over"}
                return
            yield row


def _weights(n: int, k: int) -> list[tuple[Tensor, Tensor]]:
    count = min(64, max(1, -(-_CACHE // (2 * n * k))))
    return [(drawn(i, n, k) / k**0.5, drawn(i, n)) for i in range(count)]


def _beside(case: str, ours: Calls, theirs: Calls, peer: str, size: float, copy: float) -> dict[str, Any]:
    """One row; `size` is the bytes that must be read and written at least."""
    mine, other = microseconds(ours), microseconds(theirs)
    return {
        "case": case, "value": round(mine, 2), "unit": "us", "peer": peer, "peer_value": round(other, 2),
        "ratio": round(other / mine, 3), "goal": GOAL, "met": other / mine >= GOAL,
        "tb_s": round(size / mine / 1e6, 3), "of_copy": round(size / mine / 1e6 / copy, 3),
    }  # fmt: skip


def _addmm(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    return y if residual is None else y.add_(residual)


def _normed_addmm(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _addmm(torch.nn.functional.rms_norm(x, (HIDDEN,), norm, EPS), weight, bias, None).float()


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1).cumsum(-1)


def _projections(batch: int, copy: float) -> Iterator[dict[str, Any]]:
    for name, n, k in (("qkv", QKV, HIDDEN), ("out and residual", HIDDEN, HEADS)):
        x, layers = drawn(1, batch, k), _weights(n, k)
        residual = drawn(2, batch, n) if n == HIDDEN else None
        ours = [partial(_dense.linear, x, w, b, None, residual) for w, b in layers]
        theirs = [partial(_addmm, x, w, b, residual) for w, b in layers]
        row = _beside(f"{name} batch {batch}", ours, theirs, "torch.addmm", 2 * (n * k + batch * (n + k)), copy)
        yield row | {"tflop_s": round(2 * batch * n * k / row["value"] / 1e6, 1)}


def _routers(batch: int, copy: float) -> Iterator[dict[str, Any]]:
    x, norm = drawn(3, batch, HIDDEN), drawn(4, HIDDEN)
    for experts in (32, 128):
        layers = _weights(experts, HIDDEN)
        ours = [partial(_norm_linear.norm_linear, x, norm, EPS, w, b) for w, b in layers]
        theirs = [partial(_normed_addmm, x, norm, w, b) for w, b in layers]
        size = 2 * HIDDEN * (experts + 2 * batch)
        yield _beside(f"norm and router of {experts} batch {batch}", ours, theirs, "rms_norm, addmm", size, copy)


def _unembeddings(batch: int, copy: float) -> Iterator[dict[str, Any]]:
    if batch <= _DECODED:
        x, norm, (weight, _) = drawn(3, batch, HIDDEN), drawn(4, HIDDEN), _weights(VOCABULARY, HIDDEN)[0]
        ours = [partial(_norm_linear.norm_linear, x, norm, EPS, weight, None)]
        theirs = [partial(_normed_addmm, x, norm, weight, None)]
        size = 2 * VOCABULARY * HIDDEN + 4 * batch * VOCABULARY
        yield _beside(f"norm and unembedding batch {batch}", ours, theirs, "rms_norm, matmul, float", size, copy)


def _sums(batch: int, copy: float) -> Iterator[dict[str, Any]]:
    """The end of a layer with the next one's norm, in one launch; beside torch's own operations."""
    count = max(2, min(32, _CACHE // (2 * batch * HIDDEN * 7)))
    inputs = [(drawn(8 + i, batch, TOP_K, HIDDEN), drawn(40 + i, batch, HIDDEN)) for i in range(count)]
    shares, norm = drawn(5, batch, TOP_K, dtype=torch.float32).softmax(-1), drawn(4, HIDDEN)
    ours = [partial(_routing.combine_normed, rows, shares, x, norm, EPS) for rows, x in inputs]
    theirs = [partial(_torch_sum, rows, shares, x, norm) for rows, x in inputs]
    size = 2 * batch * HIDDEN * (TOP_K + 3)
    yield _beside(f"sum, residual and norm batch {batch}", ours, theirs, "sum, add, rms_norm", size, copy)


def _torch_sum(rows: Tensor, shares: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    total = x + (rows * shares[:, :, None].to(rows.dtype)).sum(1)
    return torch.nn.functional.rms_norm(total, (HIDDEN,), norm, EPS)


def _samplers(batch: int, copy: float) -> Iterator[dict[str, Any]]:
    """Without a goal: the vendor's softmax and running sum are only the beginning of what is done here."""
    if batch > _DECODED:
        return
    logits = drawn(6, batch, VOCABULARY, dtype=torch.float32) * 4
    for name, how, n, filtered in (
        ("a draw", settings(1.0, 0.5), None, False),
        ("a draw and 20 log-probabilities", settings(1.0, 0.5), 20, False),
        ("top-k and top-p", settings(1.0, 0.5, 50, 0.9), None, True),
    ):
        table = torch.tensor([how] * batch, device=stopwatch.DEVICE)
        ours = [partial(_sampling.sample, logits, table, None, top_k=filtered, top_p=filtered, logprobs=n)]
        row = _beside(f"{name} batch {batch}", ours, [partial(_softmax, logits)], "softmax, cumsum", 0, copy)
        yield {
            key: value for key, value in row.items() if key in ("case", "value", "unit", "peer", "peer_value", "ratio")
        }


def _tilings(batch: int) -> Iterator[dict[str, Any]]:
    chip = chip_for(torch.empty(0, device=stopwatch.DEVICE))
    for name, n, k in (("qkv", QKV, HIDDEN), ("out", HIDDEN, HEADS)):
        x, layers, chosen = drawn(7, batch, k), _weights(n, k), _dense.tiling(batch, n, chip)
        for tile in _others(batch):
            if tile.stage_bytes * tile.stages <= chip.shared_bytes:
                us = microseconds([partial(_dense.linear, x, w, None, tile=tile) for w, _ in layers])
                case = f"{name} batch {batch}, {tile}"
                yield {"case": case, "value": round(us, 2), "unit": "us", "chosen": tile == chosen}


def _others(batch: int) -> Iterator[Tiling]:
    if batch <= 64:
        for live in (16, 24, 32, 40, 64):
            for k, stages in ((64, 6), (64, 12), (128, 5), (128, 7), (128, 10)):
                yield Tiling(64, live, max(16, 1 << (batch - 1).bit_length()), k, 4, stages)
        return
    for weights, tokens, warps, stages in ((64, 128, 4, 4), (64, 256, 4, 3), (128, 128, 8, 3), (128, 128, 4, 3),
                                           (128, 256, 8, 3), (128, 256, 8, 4), (256, 128, 8, 4)):  # fmt: skip
        yield Tiling(weights, weights, tokens, 64, warps, stages)

"""Times on a GPU: a captured graph of many calls, so that launching costs what it does while serving."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DEVICE = "cuda"
"""A CPU in tests, which try what is timed: calls are made one by one there, and the times mean nothing."""
_COPIED = 1 << 30  # bytes of the copy that everything else is held against


def microseconds(calls: Sequence[Callable[[], object]], repeats: int = 9) -> float:
    """Median time of one call, all of them captured in a graph that is replayed `repeats` times.

    The calls should read different weights, so that what one read is not in the cache for the next.
    """
    if DEVICE == "cpu":
        return sum(_host_microseconds(call) for call in calls) / len(calls)
    for call in calls:
        call()  # compiles, and takes its memory
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return _median(graph.replay, repeats) / len(calls)


def eager_microseconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median time of one call that cannot be captured, launches included."""
    call()
    return _host_microseconds(call) if DEVICE == "cpu" else _median(call, repeats)


def _median(call: Callable[[], object], repeats: int) -> float:
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[repeats // 2]


def _host_microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers, drawn on the GPU: a host would take most of the run's time to draw them."""
    return torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def copy_tb_s() -> float:
    """What a plain copy moves, reads and writes counted."""
    size = _COPIED if DEVICE == "cuda" else 1 << 20
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    return 2 * size / microseconds([lambda: target.copy_(source)] * 4) / 1e6


def matmul_tflop_s(rows: int, n: int, k: int) -> float:
    """What the vendor's library reaches for [rows, k] @ [k, n] in bf16, random data."""
    rows, n, k = (rows, n, k) if DEVICE == "cuda" else (16, 16, 16)
    x, w = drawn(1, rows, k), drawn(2, k, n)
    return 2 * rows * n * k / microseconds([lambda: torch.matmul(x, w)] * 4) / 1e6

"""Times on a GPU: a captured graph of many calls, so that launching costs what it does while serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_COPIED = 1 << 30  # bytes of the copy that everything else is held against


def microseconds(calls: Sequence[Callable[[], object]], repeats: int = 9) -> float:
    """Median time of one call, all of them captured in a graph that is replayed `repeats` times.

    The calls should read different weights, so that what one read is not in the cache for the next.
    """
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
    return _median(call, repeats)


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


def copy_tb_s() -> float:
    """What a plain copy moves, reads and writes counted."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * _COPIED / microseconds([lambda: target.copy_(source)] * 4) / 1e6


def matmul_tflop_s(rows: int, n: int, k: int) -> float:
    """What the vendor's library reaches for [rows, k] @ [k, n] in bf16, random data."""
    x, w = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((rows, k), (k, n)))
    return 2 * rows * n * k / microseconds([lambda: torch.matmul(x, w)] * 4) / 1e6

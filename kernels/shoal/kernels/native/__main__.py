"""`python -m shoal.kernels.native`: which library is in use, and how fast it is here.

Decoding is bound by memory, so its speed is given in bytes of weights per second; long
prompts are bound by arithmetic, so theirs is in operations per second. The best of a few runs, a second in all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from shoal.kernels import native
from shoal.kernels.mxfp4 import ExpertWeights

REPEATS = 5
EXPERTS, ROWS, WIDTH = 8, 2880, 2880  # about 35 MB packed: larger than most caches


def best_seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def measure_experts(rows_each: int) -> tuple[float, float]:
    """(GB/s of packed weights, GFLOP/s) of `down` with `rows_each` rows for every expert."""
    blocks = torch.randint(0, 256, (EXPERTS, ROWS, WIDTH // 32, 16), dtype=torch.uint8)
    scales = torch.randint(119, 125, (EXPERTS, ROWS, WIDTH // 32), dtype=torch.uint8)
    weights = native.pack_experts(ExpertWeights(blocks, scales, torch.zeros(EXPERTS, ROWS, dtype=torch.bfloat16)))
    offsets = torch.arange(EXPERTS + 1, dtype=torch.int32) * rows_each
    x = torch.randn(EXPERTS * rows_each, WIDTH)
    seconds = best_seconds(lambda: native.down(x, offsets, weights))
    return (blocks.numel() + scales.numel()) / seconds / 1e9, 2 * x.shape[0] * ROWS * WIDTH / seconds / 1e9


def measure_linear(rows: int) -> tuple[float, float]:
    """(GB/s of bf16 weights, GFLOP/s) of `linear` with `rows` rows."""
    weight, x = native.pack_linear(torch.randn(16384, WIDTH).bfloat16()), torch.randn(rows, WIDTH)
    seconds = best_seconds(lambda: native.linear(x, weight, None))
    return weight.data.numel() * 2 / seconds / 1e9, 2 * rows * weight.data.numel() / seconds / 1e9


def main() -> int:
    if not native.available():
        print(f"native kernels are not available: {native.reason()}", file=sys.stderr)
        return 1
    print(f"isa      {native.isa()}, {native.threads()} threads")
    print(f"library  {native.library_path()}")
    print(f"one row     experts {measure_experts(1)[0]:6.1f} GB/s     dense {measure_linear(1)[0]:6.1f} GB/s")
    print(f"64 rows     experts {measure_experts(64)[1]:6.1f} GFLOP/s  dense {measure_linear(64)[1]:6.1f} GFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

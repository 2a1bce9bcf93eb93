"""What this machine can do at best, measured with the native library's own threads and instructions."""

from __future__ import annotations

import functools
import time

import torch

from shoal.kernels import native

LINE_FLOATS = 1 << 18  # the library reads whole pieces of 1 MiB
CHAINS = 12  # multiply-adds of 16 lanes per round: kChains in measure.cpp


def read_rate(size: int) -> float:
    """Bytes per second of reading `size` bytes (rounded to MiB, at least 64) once, in order. Raises as `library`.

    A size that fits a cache measures the cache: ask with the size of the data whose reading is judged.
    """
    buffer = _buffer(max(64, round(size / (4 * LINE_FLOATS))))
    sums = torch.zeros(16)
    start = time.perf_counter()
    native.library().read(buffer, sums)
    return 4 * buffer.numel() / (time.perf_counter() - start)


def fma_rate(rounds: int = 200_000, tasks: int = 16) -> float:
    """fp32 operations per second (two per multiply-add) of all threads, nothing leaving the registers."""
    sums = torch.zeros(16)
    start = time.perf_counter()
    native.library().multiply_add(sums, tasks, rounds)
    return tasks * rounds * CHAINS * 32 / (time.perf_counter() - start)


@functools.lru_cache(maxsize=1)
def _buffer(pieces: int) -> torch.Tensor:
    return torch.ones(pieces * LINE_FLOATS)

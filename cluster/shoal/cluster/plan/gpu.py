"""Kinds of GPUs, in the few numbers that a bound needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `source` says where the rates are from: a bound is no better than they are."""

    name: str
    memory: int
    """Bytes that a process can have."""
    bandwidth: float
    """Bytes per second read from memory."""
    flops: float
    """bf16 operations per second, dense, fp32 sums."""
    link: float
    """Bytes per second to the other GPUs of its machine, one direction."""
    source: str = "data sheet"


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 79 * GIB, 2.04e12, 312e12, 300e9),
        Gpu("h100", 79 * GIB, 3.35e12, 989e12, 450e9),
        Gpu("h200", 139 * GIB, 4.3e12, 790e12, 450e9, "measured copy and matmul"),
        Gpu("b200", 178 * GIB, 8.0e12, 2250e12, 900e9),
        Gpu("mi300x", 191 * GIB, 5.3e12, 1307e12, 448e9),
    )
}

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB|TB|TiB)\s*", re.IGNORECASE)
_UNITS = {"mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30, "tb": 10**12, "tib": 2**40}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`. Raises ValueError listing the names there are."""
    if name.lower() not in GPUS:
        raise ValueError(f"gpu: {name!r} is not one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError for what is no size.

    >>> parse_size("80GB"), parse_size("79.5 GiB")
    (80000000000, 85362475008)
    """
    match = _SIZE.fullmatch(text)
    if match is None or not float(match[1]) > 0:
        raise ValueError(f"{text!r} is no size such as 80GB or 79.5GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])

"""What must hold of every Triton kernel once it is compiled: right, and the same bits in every batch.

Each check returns a number worth keeping (the largest error, or how many rows were compared) and raises AssertionError
if it does not hold. With `large` the shapes are those of gpt-oss-20b; without, a CPU's interpreter gets through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels import _norm, _rope
from shoal.kernels.norm import rms_norm_torch
from shoal.kernels.rope import apply_rope_torch_, rope_tables
from tests.kernels.cases import Cases


@dataclass(frozen=True, slots=True)
class Setting:
    device: str
    large: bool
    dtype: torch.dtype

    def cases(self, seed: int) -> Cases:
        return Cases(seed, self.dtype, self.device)

    def size(self, large: int, small: int) -> int:
        return large if self.large else small


Check = Callable[[Setting], float]


def error(expected: Tensor, found: Tensor, roundings: int = 1) -> float:
    """The largest error, relative for numbers above 1. More than bf16's last place, or fp32's sums, fails; where what
    was rounded is an input of further sums, say how often. A GPU's sums may be worse: tensor cores cut off what their
    accumulators cannot hold, where a CPU rounds."""
    assert bool(torch.isfinite(found).all()), "not finite"
    wide = expected.double().cpu()
    largest = float(((found.double().cpu() - wide).abs() / wide.abs().clamp(min=1.0)).max())
    exact = 5e-5 if found.device.type == "cpu" else 3e-4
    limit = roundings * 1e-2 if found.dtype == torch.bfloat16 else exact
    assert largest <= limit, f"error {largest:.2e} above {limit:.0e}"
    return largest


def same(name: str, expected: Tensor, found: Tensor) -> float:
    """Bit for bit; returns how many numbers were compared."""
    differing = int((expected != found).sum())
    assert differing == 0, f"{name}: {differing} of {found.numel()} numbers differ in their bits"
    return float(found.numel())


def recorded(s: Setting, work: Callable[[], None]) -> Callable[[], None]:
    """What does `work` again over the same tensors: a CUDA graph, or without a GPU the work itself."""
    work()  # compiles, and takes memory that stays
    if s.device == "cpu":
        return work
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def row_operations_are_right(s: Setting) -> float:
    """Norm and rope against their twins."""
    width = s.size(2880, 96)
    x, weight = s.cases(12).normal(9, width), s.cases(13).normal(width, dtype=torch.bfloat16)
    y = _norm.rms_norm(x, weight, 1e-5)
    found = error(rms_norm_torch(x, weight, 1e-5), y)
    same("norm alone", y[5], _norm.rms_norm(x[5:6], weight, 1e-5)[0])
    positions = torch.tensor([0, 1, 7, 4000, 5, 6, 90, 8, 9], device=s.device)
    cos, sin = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, 64, 4096, s.device)
    tensors = [s.cases(14).normal(9, heads, 64) for heads in (64, 8, 64, 8)]
    _rope.apply_rope_(tensors[0], tensors[1], positions, cos, sin)
    apply_rope_torch_(tensors[2], tensors[3], positions, cos, sin)
    return max(found, error(tensors[2], tensors[0]), error(tensors[3], tensors[1]))


ALL: tuple[Check, ...] = (row_operations_are_right,)

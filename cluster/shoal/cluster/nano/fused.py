"""Chains of elementwise operations that may be compiled into one loop each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_COMPILED = False


def compile_chains() -> None:
    """From now on fusible functions are compiled when they are first called (some seconds each, then faster)."""
    global _COMPILED  # a property of the process, as the number of threads is
    _COMPILED = True


def fusible(chain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tensors that is compiled once `compile_chains` was called."""
    compiled: Callable[..., Tensor] | None = None

    def call(*tensors: Tensor) -> Tensor:
        nonlocal compiled
        if not _COMPILED:
            return chain(*tensors)
        if compiled is None:
            compiled = torch.compile(chain, dynamic=True)
        return compiled(*tensors)

    return call

"""The kernels in C++ for the CPU, behind the same names and signatures as their launchers.

Compiled on first use (a few seconds, then cached), for the best instruction set of the machine or the one that the
environment variable `SHOAL_NATIVE_ISA` names: avx512vnni, avx512, avx2 or portable. Where that is impossible,
`available()` is False and `reason()` says why; calling an operation then raises NativeUnavailableError.

Exactness: every output row is the same bits whatever the other rows, their order, the number of threads and the way a
prompt is cut into chunks. Instruction sets that round a multiply-add once (AVX-512, AVX2, NEON) agree with each other
bit for bit; `fused()` tells them from plain x86-64, which rounds twice.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from shoal.kernels.native import blocks
from shoal.kernels.native.binding import Experts, Library, Paging
from shoal.kernels.native.build import NativeUnavailableError, build_unit
from shoal.kernels.native.instruction_set import choose
from shoal.kernels.native.packing import PackedExperts, PackedLinear

__all__ = [
    "Library",
    "NativeUnavailableError",
    "PackedExperts",
    "PackedLinear",
    "apply_rope_",
    "attention",
    "attention_block",
    "available",
    "combine",
    "down",
    "expert_rows",
    "fused",
    "gate_up",
    "isa",
    "library",
    "library_path",
    "linear",
    "load",
    "norm_linear",
    "pack_experts",
    "pack_linear",
    "reason",
    "rms_norm",
    "route",
    "set_threads",
    "sort_by_expert",
    "threads",
    "write_kv",
]


def load(isa: str) -> Library:
    """The library for one instruction set, compiled if need be, with as many threads as torch now uses.

    Raises NativeUnavailableError. The machine must have that instruction set: see `instruction_set.supported`.
    """
    path = build_unit(isa)
    try:
        loaded = Library(isa, path)
    except OSError as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from error
    loaded.set_threads(torch.get_num_threads())
    return loaded


@functools.cache
def _attempt() -> Library | NativeUnavailableError:
    try:
        return load(choose())
    except NativeUnavailableError as error:
        return error


def library() -> Library:
    """The library that the functions of this module use. Raises NativeUnavailableError."""
    attempt = _attempt()
    if isinstance(attempt, NativeUnavailableError):
        raise attempt
    return attempt


def available() -> bool:
    """True if the kernels are, or just now were, built and loaded."""
    return isinstance(_attempt(), Library)


def reason() -> str | None:
    """Why the kernels are not available; None if they are."""
    attempt = _attempt()
    return str(attempt) if isinstance(attempt, NativeUnavailableError) else None


def isa() -> str:
    """avx512vnni, avx512, avx2 or portable. Raises NativeUnavailableError."""
    return library().isa


def fused() -> bool:
    """Whether a multiply-add rounds once: machines that agree in this compute the same bits. Raises as `library`."""
    return library().fused


def library_path() -> Path:
    """Where the loaded library lies. Raises NativeUnavailableError."""
    return library().path


def set_threads(count: int) -> None:
    """Threads that share an operation from now on, the calling one included; results do not depend on it."""
    library().set_threads(count)


def threads() -> int:
    return library().threads


def pack_linear(weight: Tensor | PackedLinear) -> PackedLinear:
    """See `Library.pack_linear`, as with all that follow."""
    return library().pack_linear(weight)


def pack_experts(w: Experts | PackedExperts, *, int8: bool = False) -> PackedExperts:
    return library().pack_experts(w, int8=int8)


def linear(
    x: Tensor, weight: Tensor | PackedLinear, bias: Tensor | None, out_dtype: torch.dtype | None = None
) -> Tensor:
    return library().linear(x, weight, bias, out_dtype)


def gate_up(
    x: Tensor, rows: Tensor, offsets: Tensor, w: Experts | PackedExperts, *, limit: float, alpha: float
) -> Tensor:
    return library().gate_up(x, rows, offsets, w, limit=limit, alpha=alpha)


def down(h: Tensor, offsets: Tensor, w: Experts | PackedExperts) -> Tensor:
    return library().down(h, offsets, w)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return library().rms_norm(x, weight, eps)


def apply_rope_(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    library().apply_rope_(q, k, positions, cos, sin)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    library().write_kv(k, v, k_cache, v_cache, slots)


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Paging, sinks: Tensor, window: int | None, scale: float
) -> Tensor:
    return library().attention(q, k_cache, v_cache, batch, sinks, window, scale)


def route(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return library().route(logits, k)


def sort_by_expert(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return library().sort_by_expert(ids, num_experts)


def combine(rows: Tensor, weights: Tensor) -> Tensor:
    return library().combine(rows, weights)


def norm_linear(
    x: Tensor, norm: Tensor, eps: float, weight: Tensor | PackedLinear, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `blocks.norm_linear`, as with the two that follow."""
    return blocks.norm_linear(library(), x, norm, eps, weight, bias)


def attention_block(
    x: Tensor,
    weights: blocks.Attention,
    shape: blocks.Heads,
    rope: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    batch: Paging,
    window: int | None,
) -> Tensor:
    return blocks.attention_block(library(), x, weights, shape, rope, positions, cache, slots, batch, window)


def expert_rows(
    x: Tensor,
    ids: Tensor,
    slot_of: Tensor,
    w_up: Experts | PackedExperts,
    w_down: Experts | PackedExperts,
    loads: Tensor,
    *,
    limit: float,
    alpha: float,
) -> Tensor:
    return blocks.expert_rows(library(), x, ids, slot_of, w_up, w_down, loads, limit=limit, alpha=alpha)

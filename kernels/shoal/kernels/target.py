"""Where kernels run: the one table from a device to the backend that serves it.

| tensor on | backend | what runs |
| --- | --- | --- |
| cuda | triton | compiled Triton kernels |
| cpu | native | C++ (AVX-512, AVX2 or portable, chosen at run time) |
| cpu, no compiler | torch | the plain twins: exact and slow, said once in the log |

`SHOAL_KERNELS=native|torch|triton` overrides the table for a whole process; `triton` on a CPU means Triton's
interpreter, which serves tests only.

What the Triton kernels know of each kind of GPU is in `chips`.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch

from shoal.kernels import native

Backend = Literal["native", "torch", "triton"]
Sampler = Literal["host", "device"]

OVERRIDE = "SHOAL_KERNELS"
_INTERPRET = "TRITON_INTERPRET"
_VERSION = "v2"  # of the CPU's kernels: raised whenever one may round differently from its predecessor
_GPU_VERSION = "v3"  # of the Triton kernels, likewise
_DEVICE_SAMPLER = "-sampler1"  # in the class of who chooses tokens on the device; raised with what that one chooses
_log = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """The requested device or kernel backend cannot serve here; the message names what to change."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one worker computes on, decided once at its start.

    `dtype` is the dtype of activations (and of the KV cache). `int8` rounds them to 8 bits where they meet MXFP4
    weights: faster, less exact. `sampler` says where tokens are chosen. `kernel_class` names everything that can change
    a rounding; two workers with equal classes, dtypes and checkpoints produce the same bits and tokens.
    """

    device: torch.device
    backend: Backend
    dtype: torch.dtype
    kernel_class: str
    int8: bool = False
    sampler: Sampler = "host"


def choose(device: str = "auto", *, int8: bool = False, sampler: str = "auto") -> Target:
    """Resolve "auto", "cpu", "cuda" or "cuda:N" to a complete target, with `int8` activations if asked for.

    `sampler` is "host", "device" or "auto": the device on a GPU.

    Raises BackendError if it cannot serve.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise BackendError(f"device: expected auto, cpu, cuda or cuda:N, found {device!r}") from error
    if where.type not in ("cpu", "cuda"):
        raise BackendError(f"device: expected auto, cpu, cuda or cuda:N, found {device!r}")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device: {device!r} was asked for, but torch sees no CUDA device")
    backend = _resolve(where.type, os.environ.get(OVERRIDE, ""))
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    if int8 and backend != "native":
        raise BackendError(f"8-bit activations are for the native kernels of a CPU; here {backend} kernels serve")
    kernel_class = _kernel_class(where, backend).replace("cpu-", "cpu-int8-") if int8 else _kernel_class(where, backend)
    if sampler == "auto":
        sampler = "device" if where.type == "cuda" else "host"
    if sampler not in get_args(Sampler):
        raise BackendError(f"sampler: expected auto, host or device, found {sampler!r}")
    if sampler == "device":
        kernel_class += _DEVICE_SAMPLER
    return Target(where, backend, dtype, kernel_class, int8, cast(Sampler, sampler))


def backend_for(x: torch.Tensor) -> Backend:
    """The backend that serves tensors living where `x` lives. Cheap enough for every launch."""
    return _resolve(x.device.type, os.environ.get(OVERRIDE, ""))


@functools.cache
def _resolve(device_type: str, override: str) -> Backend:
    if override and override not in get_args(Backend):
        raise BackendError(f"{OVERRIDE}: expected one of {', '.join(get_args(Backend))}, found {override!r}")
    if device_type == "cuda":
        if override == "native":
            raise BackendError(f"{OVERRIDE}: native kernels run on the CPU, the tensors are on a CUDA device")
        return cast(Backend, override or "triton")
    if override == "triton":
        _use_interpreter()
        return "triton"
    if override == "torch":
        return "torch"
    if native.available():
        return "native"
    if override == "native":
        raise BackendError(f"{OVERRIDE}: the native kernels are not available: {native.reason()}")
    _log.warning(
        "NATIVE KERNELS UNAVAILABLE: serving from the plain torch twins, which are exact but many times slower: %s",
        native.reason(),
    )
    return "torch"


def _use_interpreter() -> None:
    """Switch Triton to its interpreter, which it reads once, when `triton` is first imported."""
    if os.environ.get(_INTERPRET) != "1" and "triton" in sys.modules:
        raise BackendError(f"{OVERRIDE}: triton on a CPU needs {_INTERPRET}=1 before triton is imported")
    os.environ[_INTERPRET] = "1"


def _kernel_class(device: torch.device, backend: Backend) -> str:
    if backend == "native":
        return f"cpu-{'fma' if native.fused() else 'portable'}-{_VERSION}"
    if backend == "triton" and device.type == "cuda":
        if torch.version.hip is not None:
            return f"rocm-gfx942-{_GPU_VERSION}"
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}-{_GPU_VERSION}"
    if backend == "triton":
        return f"{device.type}-interpreted-{_GPU_VERSION}"
    return f"{device.type}-torch-{_VERSION}"

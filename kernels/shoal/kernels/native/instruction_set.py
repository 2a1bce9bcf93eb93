"""Which instruction set the native kernels use: the best the machine has, or the one the environment names."""

from __future__ import annotations

import ctypes
import os
import platform

from shoal.kernels.native.build import NativeUnavailableError, build_unit

ISAS = ("portable", "avx2", "avx512", "avx512vnni")  # in ascending order, as the probe counts them
ENVIRONMENT_KEY = "SHOAL_NATIVE_ISA"


def supported() -> tuple[str, ...]:
    """The instruction sets this machine can run, the best one last.

    Raises NativeUnavailableError: see `build_unit`.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return ISAS[:1]
    probe = ctypes.CDLL(str(build_unit("probe"))).shoal_probe
    probe.restype = ctypes.c_int64
    return ISAS[: probe() + 1]


def choose() -> str:
    """The instruction set to use: `SHOAL_NATIVE_ISA` if set, else the best supported.

    Raises NativeUnavailableError: the environment names one that cannot run here; see also `build_unit`.
    """
    here = supported()
    wanted = os.environ.get(ENVIRONMENT_KEY)
    if not wanted:
        return here[-1]
    if wanted not in here:
        raise NativeUnavailableError(f"{ENVIRONMENT_KEY}={wanted}, but this machine can run only {', '.join(here)}")
    return wanted

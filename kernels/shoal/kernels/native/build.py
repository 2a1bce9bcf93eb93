"""Compiles the C++ sources beside this file, once per machine and compiler, into the user's cache.

Effects: runs the C++ compiler; writes under `${XDG_CACHE_HOME:-~/.cache}/shoal/native-<sources>-<compiler>/`. Several
processes may build at once: a lock file lets one do the work, and a library appears under its name only when complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE_DIR = Path(__file__).parent / "src"
COMPILE_TIMEOUT_S = 300.0

# -ffp-contract=off, no -ffast-math: a multiplication and an addition are fused where the source says so, nowhere else.
# -w: GCC 12 warns about its own AVX-512 headers.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-w")
KERNEL_SOURCES = (
    "pool.cpp",
    "threads.cpp",
    "packing.cpp",
    "dense.cpp",
    "experts.cpp",
    "attention.cpp",
    "rows.cpp",
    "blocks.cpp",
    "forward.cpp",
    "measure.cpp",
)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma")
# Library name -> (sources, flags of its instruction set). Never -march=native: a cache may outlive its machine.
UNITS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "probe": (("probe.cpp",), ()),
    "portable": (KERNEL_SOURCES, ()),
    "avx2": (KERNEL_SOURCES, ("-mavx2", "-mfma")),
    "avx512": (KERNEL_SOURCES, AVX512),
    "avx512vnni": (KERNEL_SOURCES, (*AVX512, "-mavx512vnni")),
}


class NativeUnavailableError(Exception):
    """The native kernels cannot be had on this machine; the message says why and what would help."""


def find_compiler() -> list[str] | None:
    """The compiler's command line: $CXX if set, else g++, c++ or clang++ from PATH; None if there is none."""
    configured = shlex.split(os.environ.get("CXX", ""))
    if configured:
        return configured if shutil.which(configured[0]) else None
    for name in ("g++", "c++", "clang++"):
        if found := shutil.which(name):
            return [found]
    return None


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"


def source_hash() -> str:
    """Changes with every source, flag and architecture."""
    digest = hashlib.sha256(repr((UNITS, FLAGS, platform.machine())).encode())
    for path in sorted(SOURCE_DIR.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build_unit(unit: str) -> Path:
    """The shared library of one entry of `UNITS`, compiled now if no earlier run left it in the cache.

    Without a compiler, a library that another compiler made of the same sources is used (an image may carry one).
    Raises NativeUnavailableError: no compiler, compilation failed, or the cache cannot be written.
    """
    sources = source_hash()
    compiler = find_compiler()
    if compiler is None:
        for path in sorted(cache_root().glob(f"native-{sources}-*/{unit}.so")):
            return path
        raise NativeUnavailableError("no C++ compiler: neither $CXX nor g++, c++ or clang++ on PATH can be run")
    directory = cache_root() / f"native-{sources}-{_compiler_hash(compiler)}"
    library = directory / f"{unit}.so"
    if library.exists():
        return library
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(directory / "lock"):
            if not library.exists():
                _compile(compiler, unit, library)
    except OSError as error:
        raise NativeUnavailableError(
            f"cannot write {directory} ({error}); XDG_CACHE_HOME names another place"
        ) from error
    return library


def _compiler_hash(compiler: list[str]) -> str:
    try:
        version = subprocess.run(
            [*compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailableError(f"the C++ compiler {shlex.join(compiler)} does not run: {error}") from error
    return hashlib.sha256(repr(compiler).encode() + version).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released with the file, also when the process dies
        yield


def _compile(compiler: list[str], unit: str, library: Path) -> None:
    sources, isa_flags = UNITS[unit]
    handle, partial = tempfile.mkstemp(dir=library.parent, suffix=".partial")
    os.close(handle)
    command = [*compiler, *FLAGS, *isa_flags, *(str(SOURCE_DIR / name) for name in sources), "-o", partial]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        if done.returncode != 0:
            raise NativeUnavailableError(
                f"compiling the {unit} kernels failed: {shlex.join(command)}\n{done.stderr[-2000:]}"
            )
        os.replace(partial, library)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailableError(f"compiling the {unit} kernels took over {COMPILE_TIMEOUT_S:.0f} s") from error
    finally:
        Path(partial).unlink(missing_ok=True)

"""Compile every Triton kernel for a GPU that need not be there, exactly as its launcher would launch it.

    python -m tests.kernels.ahead_of_time sm80 sm90 sm100 gfx942      (one JSON line per kernel, variant and chip)
    python -m tests.kernels.ahead_of_time --check                     (every chip; exits with 1 if one does not fit)

The launchers run on tensors without data, at the shapes of gpt-oss; each launch is recorded instead of performed and
its kernel compiled to machine code with the same types, constants and options, as `chips.CHIPS` has them for the chip.
What was said of a kernel is kept in `.build`, by all that could change it: its source and what that calls, the
constants, the compiler's version, and this file. Runs in a process of its own, because Triton's interpreter and its
compiler exclude each other. What is compiled for a chip that nobody had is compiled, and no more is claimed of it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from shoal.kernels import chips
from shoal.kernels.chips import CHIPS, Chip
from tests.kernels.launches_attention import launch_attention
from tests.kernels.launches_dense import launch_dense
from tests.kernels.launches_moe import launch_moe
from tests.kernels.reports import Report, faults

KEPT = Path(__file__).parents[2] / ".build" / "ahead_of_time"
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One recorded launch: the kernel, its arguments by name, and the compiler options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


def record(launchers: Callable[[], None]) -> list[Launch]:
    """Run `launchers`, noting every kernel launch instead of performing it."""
    launches = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [p.name for p in kernel.params]
        given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        launches.append(Launch(kernel, given, {k: v for k, v in kwargs.items() if k not in names}))

    with mock.patch.object(JITFunction, "run", note):
        launchers()
    return launches


def launch_everything(chip: Chip) -> None:
    """Every launcher once per kernel variant, with the tiles of one chip."""
    with mock.patch.object(chips, "WITHOUT_GPU", chip):
        launch_moe(chip)
        launch_dense()
        launch_attention()


@dataclass(frozen=True, slots=True)
class Variant:
    """What a launch compiles to: launches that differ in numbers which no kernel is specialised for share one."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]  # parameters that are known to be multiples of 16
    options: tuple[tuple[str, Any], ...]


def variant_of(launch: Launch) -> Variant:
    """As Triton's own launcher specialises its arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: list[int] = []
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            aligned.append(i)  # as torch allocates
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(i)
    options = tuple(launch.options.items())
    return Variant(launch.kernel, tuple(signature.items()), tuple(constants.items()), tuple(aligned), options)


def variants_for(chip: str) -> list[Variant]:
    """All that the launchers need on this chip, each once."""
    return list(dict.fromkeys(map(variant_of, record(functools.partial(launch_everything, CHIPS[chip])))))


def compile_for(variant: Variant, chip: str) -> Report:
    """Compile to machine code and read what the assembler said of it."""
    constants = dict(variant.constants)
    attributes = {(i,): [["tt.divisibility", 16]] for i in variant.aligned}
    source = ASTSource(variant.kernel, dict(variant.signature), constants, attributes)
    log = io.StringIO()
    with contextlib.redirect_stdout(log), triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=_gpu(chip), options=dict(variant.options))
    told = {
        "kernel": variant.kernel.__name__,
        "variant": " ".join(f"{k}={v}" for k, v in constants.items() if isinstance(v, bool | str | int)),
        "chip": chip,
        "warps": compiled.metadata.num_warps,
        "shared_bytes": compiled.metadata.shared,
    }
    if chip.startswith("gfx"):
        return told | {"binary_bytes": len(compiled.asm["hsaco"]), **_amd_resources(compiled.asm["amdgcn"])}
    ptx = compiled.asm["ptx"]
    return told | {
        "binary_bytes": len(compiled.asm["cubin"]),
        "tensor_cores": next((i for i in ("tcgen05.mma", "wgmma", "mma.sync") if i in ptx), None),
        "from_registers": re.search(r"wgmma\.mma_async[^;]*\}, \{%r", ptx) is not None,
        "waits_for_each_product": "serialized" in log.getvalue(),
        **_resources(log.getvalue()),
    }


def _gpu(chip: str) -> GPUTarget:
    return GPUTarget("hip", chip, 64) if chip.startswith("gfx") else GPUTarget("cuda", int(chip[2:]), 32)


def _resources(log: str) -> dict[str, int]:
    """Registers per thread, and bytes of stack per thread, which is where registers spill to."""
    (registers,) = re.findall(r"Used (\d+) registers", log)
    (frame,) = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return {"registers": int(registers), "spilled_bytes": sum(map(int, frame))}


def _amd_resources(assembly: str) -> dict[str, int]:
    """The same from the metadata behind AMD's assembly."""
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    return {"registers": numbers["vgpr_count"], "spilled_bytes": 4 * numbers["vgpr_spill_count"]}


def told_of(variant: Variant, chip: str) -> Report:
    """What `compile_for` says, from an earlier time if nothing has changed."""
    by = (
        triton.__version__, variant.kernel.cache_key, variant.signature, variant.constants, variant.aligned,
        variant.options, chip, Path(__file__).read_text(),
    )  # fmt: skip
    kept = KEPT / f"{hashlib.blake2b(repr(by).encode(), digest_size=20).hexdigest()}.json"
    if kept.exists():
        found: Report = json.loads(kept.read_text())
        return found
    report = compile_for(variant, chip)
    KEPT.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(report))
    part.replace(kept)
    return report


def compile_everything(chips: list[str], share: int = 0, of: int = 1) -> Iterator[Report]:
    """Every variant of every chip, or the part of them that one of several processes does."""
    work = [(variant, chip) for chip in chips for variant in variants_for(chip)]
    # The slow ones are neighbours: dealt out like cards, every process gets as many of them.
    for variant, chip in work[share::of]:
        yield told_of(variant, chip)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("chips", nargs="*", metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--check", action="store_true", help="say only what is wrong")
    parser.add_argument("--share", type=int, default=0, help="which part of the work to do ...")
    parser.add_argument("--of", type=int, default=1, help="... of how many")
    arguments = parser.parse_args()
    count = wrong = 0
    for report in compile_everything(arguments.chips or list(CHIPS), arguments.share, arguments.of):
        found, count = faults(report), count + 1
        wrong += bool(found)
        if not arguments.check:
            print(json.dumps(report), flush=True)
        elif found:
            print(report["chip"], report["kernel"], report["variant"], found, flush=True)
    if arguments.check:
        print(f"{count} kernels compiled, {wrong} do not fit their chips")
        return min(wrong, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compile every Triton kernel for a GPU that need not be there, exactly as its launcher would launch it.

    python -m tests.kernels.ahead_of_time sm80 sm90 sm100 gfx942      (one JSON line per kernel, variant and chip)

The launchers run on tensors without data, at the shapes of gpt-oss; each launch is recorded instead of performed and
its kernel compiled to machine code with the same types, constants and options, as `chips.CHIPS` has them for the chip.
Runs in a process of its own, because Triton's interpreter and its compiler exclude each other. What is compiled for a
chip that nobody had is compiled, and no more is claimed of it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
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


def compile_for(launch: Launch, chip: str) -> dict[str, object]:
    """Compile one launch to machine code and read what the assembler made of it."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]  # as torch allocates
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=_gpu(chip), options=launch.options)
    told = {
        "kernel": launch.kernel.__name__,
        "variant": " ".join(f"{k}={v}" for k, v in constants.items() if isinstance(v, bool | str | int)),
        "chip": chip,
        "warps": compiled.metadata.num_warps,
        "shared_bytes": compiled.metadata.shared,
    }
    if chip.startswith("gfx"):
        return told | {"binary_bytes": len(compiled.asm["hsaco"]), **_amd_resources(compiled.asm["amdgcn"])}
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    return told | {
        "binary_bytes": len(cubin),
        "tensor_cores": next((i for i in ("tcgen05.mma", "wgmma", "mma.sync") if i in ptx), None),
        "from_registers": re.search(r"wgmma\.mma_async[^;]*\}, \{%r", ptx) is not None,
        "waits_for_each_product": "wgmma" in ptx and _serialized(ptx, chip),
        **_resources(cubin),
    }


def _gpu(chip: str) -> GPUTarget:
    return GPUTarget("hip", chip, 64) if chip.startswith("gfx") else GPUTarget("cuda", int(chip[2:]), 32)


def _tool(name: str) -> Path:
    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of local memory and stack per thread: what spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command: list[str | Path] = [_tool("cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": numbers["REG"], "spilled_bytes": numbers["STACK"] + numbers["LOCAL"]}


def _amd_resources(assembly: str) -> dict[str, int]:
    """The same from the metadata behind AMD's assembly."""
    numbers = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    return {"registers": numbers["vgpr_count"], "spilled_bytes": 4 * numbers["vgpr_spill_count"]}


def _serialized(ptx: str, chip: str) -> bool:
    """Whether the assembler says that it had to let every wgmma finish before the next."""
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(ptx)
        file.flush()
        arch = f"-arch=sm_{chip[2:]}a"
        command: list[str | Path] = [_tool("ptxas"), arch, "-v", file.name, "-o", os.devnull]
        return "serialized" in subprocess.run(command, check=True, capture_output=True, text=True).stderr


def compile_everything(chips: list[str]) -> Iterator[dict[str, object]]:
    for chip in chips:
        for launch in record(functools.partial(launch_everything, CHIPS[chip])):
            yield compile_for(launch, chip)


if __name__ == "__main__":
    for report in compile_everything(sys.argv[1:] or ["sm90"]):
        print(json.dumps(report), flush=True)

"""Compile every Triton kernel for a GPU that need not be there, exactly as its launcher would launch it.

    python -m tests.kernels.ahead_of_time 80 90 100      (compute capabilities; one JSON line per kernel and chip)

The launchers run on tensors without data, at the shapes of gpt-oss-20b; each launch is recorded instead of performed
and its kernel compiled to machine code with the same types, constants and options. Runs in a process of its own,
because Triton's interpreter and its compiler exclude each other.
"""

from __future__ import annotations

import json
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

from shoal.kernels import _attention, _dense, _moe_matmul, _norm, _rope, _routing
from shoal.kernels.attention import AttentionBatch
from shoal.kernels.mxfp4 import ExpertWeights

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


def launch_everything() -> None:
    """Every launcher once per kernel variant, with the shapes of gpt-oss-20b."""

    def t(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def ints(*shape: int) -> torch.Tensor:
        return t(*shape, dtype=torch.int32)

    def weights(rows: int) -> ExpertWeights:
        blocks, scales = t(experts, rows, 90, 16, dtype=torch.uint8), t(experts, rows, 90, dtype=torch.uint8)
        return ExpertWeights(blocks, scales, t(experts, rows))

    hidden, experts, tokens = 2880, 32, 64
    x = t(tokens, hidden)
    _moe_matmul.gate_up(x, ints(256), ints(experts + 1), weights(2 * hidden), limit=7.0, alpha=1.702)
    _moe_matmul.down(t(256, hidden), ints(experts + 1), weights(hidden))
    _dense.linear(x, t(5120, hidden), t(5120), None)
    _dense.linear(x, t(201088, hidden), None, torch.float32)
    _norm.rms_norm(x, t(hidden), 1e-5)
    _rope.apply_rope_(
        t(tokens, 64, 64),
        t(tokens, 8, 64),
        t(tokens, dtype=torch.int64),
        t(131072, 32, dtype=torch.float32),
        t(131072, 32, dtype=torch.float32),
    )
    _routing.route(t(tokens, experts, dtype=torch.float32), 4)
    _routing.sort_by_expert(ints(256), experts, count=256)
    _routing.combine(t(tokens, 4, hidden), t(tokens, 4, dtype=torch.float32))
    cache = t(4096, 16, 8, 64)
    _attention.write_kv(t(tokens, 8, 64), t(tokens, 8, 64), cache, cache, t(tokens, dtype=torch.int64))
    for sequences, window in ((2, None), (tokens, 128)):  # few: split and merged
        batch = AttentionBatch(ints(sequences + 1), ints(sequences), ints(sequences, 256))
        _attention.attention(t(sequences, 64, 64), cache, cache, batch, t(64), window, 0.125)


def compile_for(launch: Launch, capability: int) -> dict[str, object]:
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
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    cubin = compiled.asm["cubin"]
    return {
        "kernel": launch.kernel.__name__,
        "capability": capability,
        "cubin_bytes": len(cubin),
        "shared_bytes": compiled.metadata.shared,
        "tensor_cores": next((i for i in ("tcgen05.mma", "wgmma", "mma.sync") if i in compiled.asm["ptx"]), None),
        **_resources(cubin),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of local memory and stack per thread: what spills."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": numbers["REG"], "stack_bytes": numbers["STACK"], "local_bytes": numbers["LOCAL"]}


def compile_everything(capabilities: list[int]) -> Iterator[dict[str, object]]:
    for launch in record(launch_everything):
        for capability in capabilities:
            yield compile_for(launch, capability)


if __name__ == "__main__":
    for report in compile_everything([int(a) for a in sys.argv[1:]] or [90]):
        print(json.dumps(report), flush=True)

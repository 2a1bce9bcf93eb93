"""What the assembler says of a kernel, and what of that is wrong."""

from __future__ import annotations

from typing import Any

from shoal.kernels.chips import CHIPS

Report = dict[str, Any]
REGISTERS = 65536  # of a multiprocessor; twice as many where they are AMD's


def faults(report: Report) -> list[str]:
    """What is wrong with a kernel on its chip: it must live in registers, and one program at least must fit."""
    chip, amd = CHIPS[str(report["chip"])], str(report["chip"]).startswith("gfx")
    registers = int(report["registers"]) * int(report["warps"]) * (64 if amd else 32)
    return [
        *(["it is empty"] if not report["binary_bytes"] else []),
        *([f"{report['spilled_bytes']} bytes a thread are spilled"] if report["spilled_bytes"] else []),
        *([f"{registers} registers"] if registers > REGISTERS * (2 if amd else 1) else []),
        *([f"{report['shared_bytes']} shared bytes"] if int(report["shared_bytes"]) > chip.shared_bytes else []),
    ]

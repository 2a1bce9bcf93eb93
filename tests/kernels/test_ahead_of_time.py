"""Every Triton kernel compiles for the chips it is meant for, without one at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {
    "_attention_kernel", "_combine_kernel", "_count_kernel", "_linear_kernel", "_merge_kernel", "_moe_matmul_kernel",
    "_place_kernel", "_rms_norm_kernel", "_rope_kernel", "_route_kernel", "_scan_kernel", "_write_kv_kernel",
}  # fmt: skip
PRODUCTS = {"_attention_kernel", "_linear_kernel", "_moe_matmul_kernel"}
HOPPER = 90


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the assembler says of each kernel, compiled afresh for Hopper."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "tests.kernels.ahead_of_time", str(HOPPER)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_becomes_machine_code(reports: list[dict[str, Any]]) -> None:
    """As its launcher would launch it at the shapes of gpt-oss-20b."""
    assert {r["kernel"] for r in reports} == KERNELS
    assert all(r["cubin_bytes"] > 0 for r in reports)


def test_no_kernel_spills(reports: list[dict[str, Any]]) -> None:
    """All values live in registers: neither stack nor local memory."""
    assert [r for r in reports if r["stack_bytes"] or r["local_bytes"]] == []


def test_every_kernel_fits_the_chip_twice(reports: list[dict[str, Any]]) -> None:
    """Two programs of 128 threads on a multiprocessor: 65,536 registers; and one at least in 227 KiB shared memory."""
    assert [r for r in reports if r["registers"] * 128 * 2 > 65536 or r["shared_bytes"] > 227 * 1024] == []


def test_products_use_the_tensor_cores_of_the_chip(reports: list[dict[str, Any]]) -> None:
    """Hopper's own instruction, not the one of older chips."""
    assert {"wgmma"} == {r["tensor_cores"] for r in reports if r["kernel"] in PRODUCTS}

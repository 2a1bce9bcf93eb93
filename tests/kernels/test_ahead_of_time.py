"""Every Triton kernel compiles for the chips it is meant for, without one at hand. Compiled, not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.kernels import chips

ROOT = Path(__file__).parents[2]
CHIPS = ("sm80", "sm90", "sm100", "gfx942")
REGISTERS = 65536  # of a multiprocessor
PRODUCTS = {"_attention_kernel", "_linear_kernel", "_moe_matmul_kernel"}
Report = dict[str, Any]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Report]]:
    """What the assembler says of each kernel, compiled afresh; two processes side by side."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.ahead_of_time", *CHIPS, "--share", str(share), "--of", "2"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for share in range(2)
    ]  # fmt: skip
    found: dict[str, list[Report]] = {chip: [] for chip in CHIPS}
    for process in running:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        for line in out.splitlines():
            report = json.loads(line)
            found[report["chip"]].append(report)
    return found


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_become_machine_code(chip: str, reports: dict[str, list[Report]]) -> None:
    """As their launchers would launch them at the shapes of gpt-oss, none of them empty; some chips need fewer."""
    kernels = {r["kernel"] for r in reports[chip]}

    assert kernels >= PRODUCTS
    assert len(kernels) >= 12
    assert all(r["binary_bytes"] > 0 for r in reports[chip])


@pytest.mark.parametrize("chip", CHIPS)
def test_no_kernel_spills(chip: str, reports: dict[str, list[Report]]) -> None:
    """All values live in registers: neither stack nor local memory."""
    assert [r for r in reports[chip] if r["spilled_bytes"]] == []


@pytest.mark.parametrize("chip", CHIPS)
def test_every_kernel_fits_its_chip(chip: str, reports: dict[str, list[Report]]) -> None:
    """One program at least in the registers and the shared memory of a multiprocessor."""
    width = 64 if chip.startswith("gfx") else 32
    registers = REGISTERS * (2 if chip.startswith("gfx") else 1)  # 512 KiB of vector registers there

    assert [r for r in reports[chip] if r["registers"] * r["warps"] * width > registers] == []
    assert [r for r in reports[chip] if r["shared_bytes"] > chips.CHIPS[chip].shared_bytes] == []


def test_products_use_the_tensor_cores_of_hopper(reports: dict[str, list[Report]]) -> None:
    """Its own instruction, not the one of older chips."""
    assert {"wgmma"} == {r["tensor_cores"] for r in reports["sm90"] if r["kernel"] in PRODUCTS}


def test_decoded_weights_go_from_registers_into_hoppers_tensor_cores(reports: dict[str, list[Report]]) -> None:
    """Never through shared memory, and without a wait between one product and the next."""
    experts = [r for r in reports["sm90"] if "FORMAT=mxfp4" in r["variant"]]

    assert len(experts) >= 8
    assert [r for r in experts if not r["from_registers"] or r["waits_for_each_product"]] == []


def test_decoding_tiles_leave_room_for_three_programs_on_a_multiprocessor(reports: dict[str, list[Report]]) -> None:
    """With three resident, more bytes are on their way than the latency of Hopper's memory needs (26 KB each)."""
    decode = [r for r in reports["sm90"] if "FORMAT=mxfp4" in r["variant"] and "SCHEDULED=16" in r["variant"]]

    assert len(decode) >= 2
    assert [r for r in decode if r["registers"] * 128 * 3 > REGISTERS or r["shared_bytes"] * 3 > 227 * 1024] == []

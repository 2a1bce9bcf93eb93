"""Every Triton kernel compiles for the chips it is meant for, without one at hand. Compiled, not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.reports import REGISTERS, Report, faults

ROOT = Path(__file__).parents[2]
CHIPS = ("sm80", "sm90", "sm100", "gfx942")
PRODUCTS = {"_attention_kernel", "_linear_kernel", "_moe_matmul_kernel"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Report]]:
    """What the assembler says of each kernel; two processes side by side."""
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
    """As their launchers would launch them at the shapes of gpt-oss; some chips need fewer."""
    kernels = {r["kernel"] for r in reports[chip]}

    assert kernels >= PRODUCTS
    assert len(kernels) >= 12


@pytest.mark.parametrize("chip", CHIPS)
def test_every_kernel_fits_its_chip(chip: str, reports: dict[str, list[Report]]) -> None:
    """All values live in registers, neither on the stack nor in local memory; one program at least finds the registers
    and the shared memory that it needs."""
    assert {} == {f"{r['kernel']} {r['variant']}": faults(r) for r in reports[chip] if faults(r)}


@pytest.mark.parametrize("fault", [{"spilled_bytes": 8}, {"registers": 600}, {"shared_bytes": 300_000}])
def test_what_does_not_fit_is_a_fault(fault: dict[str, int]) -> None:
    """A spilled register, too many of them, too much memory."""
    fits = {"chip": "sm90", "registers": 128, "warps": 4, "shared_bytes": 1024, "spilled_bytes": 0, "binary_bytes": 1}

    assert [] == faults(fits)
    assert len(faults(fits | fault)) == 1


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

"""Check every Triton kernel as compiled for this machine's GPU, and time it at the shapes of gpt-oss.

    python tests/gpu/run.py --out tests/bench/results      (a machine with CUDA, torch and triton; under ten minutes)

Writes the records `gpu-kernels` (checks; what is around the experts) and `gpu-moe` (experts) after each part, whatever
fails or however little time is left, and exits with 1 if a check failed. `--interpret` runs the checks small, on the
CPU, in Triton's interpreter: that shows that the script itself is sound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, below
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402  the two lines above decide what the imports below find
import triton  # noqa: E402  as above

if "--interpret" in sys.argv:
    from tests.kernels import ordered_dot

    ordered_dot.install()

from tests.gpu import checks, dense_checks, dense_timing, moe_checks, moe_timing  # noqa: E402  as above

CHECKS = (*moe_checks.ALL, *dense_checks.ALL, *checks.ALL)
TIMED = {"gpu-moe": moe_timing.rows, "gpu-kernels": dense_timing.rows}


def run_checks(device: str) -> list[dict[str, Any]]:
    """Every check; a failure is recorded and the next one runs. A GPU serves bf16, fp32 is the interpreter's own."""
    results, large = [], device == "cuda"
    for dtype in (torch.bfloat16,) if large else (torch.bfloat16, torch.float32):
        setting = checks.Setting(device, large, dtype)
        for check in CHECKS:
            name, start = f"{check.__name__} {str(dtype).removeprefix('torch.')}", time.perf_counter()
            result: dict[str, Any] = {"check": name, "passed": False}
            try:
                result |= {"value": check(setting), "passed": True}
            except AssertionError as failure:
                result["message"] = str(failure)
            except Exception:  # a compiler or driver error is a result too
                result["message"] = traceback.format_exc(limit=-3)
            result["seconds"] = round(time.perf_counter() - start, 2)
            print("ok  " if result["passed"] else "FAIL", name, result.get("value", result.get("message")), flush=True)
            results.append(result)
    return results


def machine(device: str) -> dict[str, Any]:
    ptxas = Path(os.environ.get("TRITON_PTXAS_PATH", Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"))
    smi = shutil.which("nvidia-smi")
    version = said([ptxas, "--version"]) if ptxas.exists() else ""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "driver": said([smi, "--query-gpu=driver_version", "--format=csv,noheader"]) if smi else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ptxas": next((line for line in version.splitlines() if "release" in line), None),
    }


def said(command: list[str | Path]) -> str:
    """What a command printed; nothing if it failed."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def write(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """One record, replaced whole."""
    record = {
        "name": name,
        "commit": said(["git", "-C", ROOT, "rev-parse", "HEAD"]) or None,
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.json"
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(folder / f"{name}.json")


def time_everything(folder: Path, facts: dict[str, Any], until: float) -> None:
    """What each record's timer says, row by row as it comes; one that fails leaves a row that says so."""
    for name, timer in TIMED.items():
        rows: list[dict[str, Any]] = []
        try:
            for row in timer(until):
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                rows.append(row)
        except Exception:  # as with the checks
            rows.append({"case": timer.__module__, "failed": traceback.format_exc(limit=-3)})
            print("FAIL", rows[-1]["failed"], flush=True)
        write(folder, name, facts | {"rows": rows})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder for the records")
    parser.add_argument("--seconds", type=float, default=540.0, help="when no further row is begun")
    parser.add_argument("--interpret", action="store_true", help="small shapes on the CPU, nothing is timed")
    arguments = parser.parse_args()
    if not arguments.interpret and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --interpret checks the script without one")
    until = time.monotonic() + arguments.seconds
    device = "cpu" if arguments.interpret else "cuda"
    results = run_checks(device)
    facts: dict[str, Any] = {"machine": machine(device), "checks": results}
    write(arguments.out, "gpu-kernels", facts | {"rows": []})
    if not arguments.interpret:
        time_everything(arguments.out, facts, until)
    failed = [result["check"] for result in results if not result["passed"]]
    print(f"{len(results) - len(failed)} checks passed, {len(failed)} failed; written to {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

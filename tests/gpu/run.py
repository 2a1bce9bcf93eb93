"""Check every Triton kernel as compiled for this machine's GPU, and time the experts of gpt-oss-20b.

    python tests/gpu/run.py --out gpu-kernels.json      (a machine with CUDA, torch and triton; a few minutes)

Writes one JSON record, whatever fails, and exits with 1 if a check failed. `--interpret` runs the checks small, on the
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
import triton.testing  # noqa: E402  as above

from shoal.kernels import _moe_matmul, _routing  # noqa: E402  as above
from tests.gpu import checks  # noqa: E402  as above
from tests.kernels.cases import Cases  # noqa: E402  as above

HIDDEN, EXPERTS, TOP_K = 2880, 32, 4
BATCHES = (1, 4, 16, 64, 256, 2048)
EXPERT_BYTES = HIDDEN * HIDDEN * 3 * 17 // 32  # gate, up and down: 16 bytes and a scale for every 32 weights


def run_checks(device: str) -> list[dict[str, Any]]:
    """Every check; a failure is recorded and the next one runs. A GPU serves bf16, fp32 is the interpreter's own."""
    results, large = [], device == "cuda"
    for dtype in (torch.bfloat16,) if large else (torch.bfloat16, torch.float32):
        setting = checks.Setting(device, large, dtype)
        for check in checks.ALL:
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


def time_experts() -> list[dict[str, Any]]:
    """Both grouped matmuls of one layer, random routing, cold L2; beside a plain copy on the same GPU."""
    cases = Cases(0, torch.bfloat16, "cuda")
    w1, w2 = cases.experts(EXPERTS, 2 * HIDDEN, HIDDEN), cases.experts(EXPERTS, HIDDEN, HIDDEN)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_gb_s = 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e6
    rows = [{"case": "copy", "value": round(copy_gb_s, 1), "unit": "GB/s"}]
    for batch in BATCHES:
        x = cases.normal(batch, HIDDEN)
        ids, _ = _routing.route(Cases(batch, torch.float32, "cuda").normal(batch, EXPERTS), TOP_K)
        order, offsets = _routing.sort_by_expert(ids.flatten(), EXPERTS, count=batch * TOP_K)
        tokens = (order // TOP_K).to(torch.int32)

        def layer(x: torch.Tensor = x, tokens: torch.Tensor = tokens, offsets: torch.Tensor = offsets) -> torch.Tensor:
            h = _moe_matmul.gate_up(x, tokens, offsets, w1, limit=7.0, alpha=1.702)
            return _moe_matmul.down(h, offsets, w2)

        ms = median_ms(layer)
        hit = int((offsets[1:] > offsets[:-1]).sum())
        gb_s = hit * EXPERT_BYTES / ms / 1e6
        tflops = batch * TOP_K * HIDDEN * HIDDEN * 3 * 2 / ms / 1e9
        case = f"experts of one layer, batch {batch}, {hit} of {EXPERTS} hit"
        rows.append({"case": case, "value": round(ms * 1e3, 1), "unit": "us"})
        rows.append({"case": f"{case}, weights read", "value": round(gb_s, 1), "unit": "GB/s"})
        rows.append({"case": f"{case}, arithmetic", "value": round(tflops, 2), "unit": "TFLOP/s"})
        print(case, f"{ms * 1e3:.1f} us, {gb_s:.0f} GB/s (copy {copy_gb_s:.0f}), {tflops:.1f} TFLOP/s", flush=True)
    return rows


def median_ms(operation: Any) -> float:
    """Median milliseconds of one call, the cache emptied between calls."""
    return float(triton.testing.do_bench(operation, warmup=50, rep=200, return_mode="median"))


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu-kernels.json"), help="where the record goes")
    parser.add_argument("--interpret", action="store_true", help="small shapes on the CPU, nothing is timed")
    arguments = parser.parse_args()
    if not arguments.interpret and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --interpret checks the script without one")
    device = "cpu" if arguments.interpret else "cuda"
    results = run_checks(device)
    record = {
        "name": "gpu-kernels",
        "commit": said(["git", "-C", ROOT, "rev-parse", "HEAD"]) or None,
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(device),
        "checks": results,
        "rows": [] if arguments.interpret else time_experts(),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    failed = [result["check"] for result in results if not result["passed"]]
    print(f"{len(results) - len(failed)} checks passed, {len(failed)} failed; written to {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Check every Triton kernel as compiled for this machine's GPU, and time it at the shapes of gpt-oss.

    python tests/gpu/run.py --out tests/bench/results      (a machine with CUDA, torch and triton; under ten minutes)

Writes the records `gpu-moe` (experts) and `gpu-kernels` (what is around them) after each part, whatever fails or
however little time is left, and exits with 1 if a check failed or a part broke. Every part is a process of its own with
a limit; one for which no time is left is left out, and the record says so. `--triton-kernels FOLDER` names a folder
that holds OpenAI's package `triton_kernels`, for a comparison side by side; without it, what python finds is taken.

`--interpret` runs the checks small, on the CPU, in Triton's interpreter: that shows that the script itself is sound.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from tests.gpu.parts import Part, launch  # noqa: E402  the line above decides where it is found
from tests.gpu.telling import Teller, Told  # noqa: E402  as above

CHECKS = "checks "
PARTS = {  # by the record that they write to
    "gpu-moe": (Part(f"{CHECKS}experts", 120, 20), Part("experts", 170, 40), Part("triton_kernels", 110, 40)),
    "gpu-kernels": (
        Part(f"{CHECKS}attention", 100, 20),
        Part(f"{CHECKS}dense", 120, 20),
        Part("attention", 70, 20),
        Part("dense", 100, 20),
        Part("dense tiles", 70, 20),
    ),
}
ORDER = (
    f"{CHECKS}experts", f"{CHECKS}attention", f"{CHECKS}dense", "experts", "attention", "dense", "triton_kernels",
    "dense tiles",
)  # fmt: skip
TOTAL = 570.0
_ENDING = 6.0  # seconds before a part's limit after which it begins nothing new


def run_checks(name: str, interpret: bool, tell: Teller) -> None:
    """Every check of a part; a failure is told and the next one runs. A GPU serves bf16."""
    import torch

    from tests.gpu import attention_checks, checks, dense_checks, moe_checks

    groups: dict[str, Sequence[checks.Check]] = {
        "experts": moe_checks.ALL, "attention": attention_checks.ALL, "dense": (*dense_checks.ALL, *checks.ALL),
    }  # fmt: skip
    setting = checks.Setting("cpu" if interpret else "cuda", not interpret, torch.bfloat16)
    for check in groups[name]:
        start = time.perf_counter()
        value, message = None, ""
        try:
            value = check(setting)
        except AssertionError as failure:
            message = str(failure) or "it does not hold"
        except Exception:  # a compiler or driver error is a result too
            message = traceback.format_exc(limit=-3)
        said = {"message": message} if message else {"value": value}
        tell.check(check.__name__, not message, **said, seconds=round(time.perf_counter() - start, 2))
        if setting.large:
            torch.cuda.synchronize()  # raises where a kernel went astray: what came after it would say nothing


def timed(name: str, until: float, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Rows of a part, one after another, until the clock (time.monotonic) says `until`."""
    from tests.gpu import attention_timing, dense_timing, moe_peer, moe_timing

    match name:
        case "experts":
            return moe_timing.rows(until)
        case "attention":
            return attention_timing.rows(until)
        case "dense":
            return dense_timing.rows(until)
        case "dense tiles":
            return dense_timing.tiles(until)
        case _:
            return moe_peer.rows(until, folder)


def run_part(name: str, arguments: argparse.Namespace, tell: Teller) -> None:
    """In the part's own process. What is heavy is imported here."""
    if arguments.interpret:
        from tests.kernels import ordered_dot

        ordered_dot.install()
    tell.fact(machine=machine("cpu" if arguments.interpret else "cuda"))
    if name.startswith(CHECKS):
        run_checks(name.removeprefix(CHECKS), arguments.interpret, tell)
        return
    for row in timed(name, time.monotonic() + arguments.seconds - _ENDING, arguments.triton_kernels):
        tell.whole(row)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import triton

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


def said(command: Sequence[str | Path]) -> str:
    """What a command printed; nothing if it failed."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@dataclass(slots=True)
class Record:
    """What is known so far."""

    name: str
    when: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def take(self, told: Told) -> None:
        """Add what a part said."""
        self.machine = told.facts.get("machine", self.machine)
        self.rows += told.rows
        self.checks += told.checks

    def write(self, folder: Path) -> None:
        """Replaced whole."""
        folder.mkdir(parents=True, exist_ok=True)
        commit = said(["git", "-C", ROOT, "rev-parse", "HEAD"]) or None
        part = folder / f".{self.name}.json"
        part.write_text(json.dumps({"commit": commit, **asdict(self)}, indent=1) + "\n")
        part.replace(folder / f"{self.name}.json")


def run_all(arguments: argparse.Namespace) -> list[Record]:
    """All parts that there is time for; both records are on the disk after each."""
    begin = time.monotonic()
    records = {name: Record(name) for name in PARTS}
    parts = {part.name: (part, records[name]) for name, some in PARTS.items() for part in some}
    for name in ORDER:
        part, record = parts[name]
        if name not in arguments.only or (arguments.interpret and not name.startswith(CHECKS)):
            continue
        left = max(0.0, arguments.seconds - (time.monotonic() - begin))
        state: dict[str, Any] = {"part": name}
        if left < part.least:
            state["skipped"] = f"{left:.0f} s were left of {arguments.seconds:.0f}, it takes at least {part.least:.0f}"
        else:
            print(f"== {name}", flush=True)
            started, seconds = time.monotonic(), min(left, part.limit)
            told, problem = launch(command(name, seconds, arguments), environment(arguments), seconds)
            record.take(told)
            state["seconds"] = round(time.monotonic() - started, 1)
            if problem:
                state["problem"] = problem
        record.parts.append(state)
        for one in records.values():
            one.write(arguments.out)
    return list(records.values())


def command(name: str, seconds: float, arguments: argparse.Namespace) -> list[str]:
    """What runs one part."""
    folder = ["--triton-kernels", str(arguments.triton_kernels)] if arguments.triton_kernels else []
    interpret = ["--interpret"] if arguments.interpret else []
    here = str(Path(__file__).resolve())
    return [sys.executable, here, "--part", name, "--seconds", str(seconds), *folder, *interpret]


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """What Triton reads when it is imported."""
    return {"TRITON_INTERPRET": "1"} if arguments.interpret else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="the folder for the records")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all of it")
    parser.add_argument("--interpret", action="store_true", help="small shapes on the CPU, nothing is timed")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, help="leave the other parts out")
    parser.add_argument("--triton-kernels", type=Path, help="a folder that holds OpenAI's package")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--say", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.part, arguments, Teller(arguments.say))
        return 0
    if not arguments.interpret:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no CUDA device; --interpret checks the script without one")
    records = run_all(arguments)
    checks = [check for record in records for check in record.checks]
    failed = [check for check in checks if not check["passed"]]
    parts = [part for record in records for part in record.parts]
    broken = [part for part in parts if "problem" in part]
    for part in parts:
        if "problem" in part or "skipped" in part:
            print(f"{part['part']}: {part.get('problem') or part['skipped']}")
    for check in failed:
        print(f"FAILED {check['check']}: {check['message']}")
    print(
        f"{sum(len(record.rows) for record in records)} rows; {len(checks) - len(failed)} checks passed, "
        f"{len(failed)} failed; {len(broken)} parts broken; written to {arguments.out}"
    )
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())

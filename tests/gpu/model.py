"""Check and measure the whole model on this machine's GPU at full size, with synthetic weights: answers are noise.

    python tests/gpu/model.py --out gpu-model.json        (CUDA, torch, triton; less than ten minutes)

Every part runs in a process of its own with a limit, and is left out, with the reason, when time runs short; the record
is written after each. Exits with 1 if a check failed or a part broke. `--small` runs all of it tiny, on the CPU (the
layers in Triton's interpreter): that shows that the script itself is sound, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("cluster", "kernels", "proto", "workers"))]

from tests.gpu.parts import Part, launch  # noqa: E402  the line above decides where it is found
from tests.gpu.telling import Teller, Told  # noqa: E402  as above

if sys.version_info < (3, 11):  # noqa: UP036  said in words rather than as a syntax error from deep within
    sys.exit("Python 3.11 or newer is needed")


PARTS = (
    Part("device", 60, 15),
    Part("layers", 120, 30),
    Part("large", 200, 60),
    Part("small", 130, 45),
    Part("groups", 110, 40),
    Part("graphs", 80, 30),
    Part("start", 90, 45),
    Part("peer", 100, 45),
)
TOTAL = 585.0


def run_part(name: str, small: bool, facts: dict[str, Any], tell: Teller) -> None:
    """In the part's own process. What is heavy is imported here."""
    from tests.gpu import device, graphs, groups, layers, peer, speed
    from tests.gpu.extent import FULL, TINY

    extent = TINY if small else FULL
    if name in ("large", "small"):
        import torch

        gpu = _gpu(facts)
        goals = extent.on_gpu and "H200" in torch.cuda.get_device_name()
        speed.measure(speed.build(name, extent, gpu, goals, tell), extent, tell)
        return
    works: dict[str, Sequence[Callable[..., None]]] = {
        "device": (device.rates, device.noise), "layers": (layers.compare,), "groups": (groups.compare,),
        "graphs": (graphs.compare,), "start": (device.start,), "peer": (peer.compare,),
    }  # fmt: skip
    for work in works[name]:
        work(extent, tell)
    if name == "device":
        tell.fact(machine=_machine(extent.device))


def _gpu(facts: dict[str, Any]) -> Any:
    """This GPU as bounds see it, by what was measured; None when it was not."""
    from shoal.cluster.plan.gpu import Gpu

    if "bandwidth" not in facts or "flops" not in facts:
        return None
    return Gpu("this one", 0, facts["bandwidth"], facts["flops"], 0.0, "measured in this run")


def _machine(device: str) -> dict[str, Any]:
    from tests.gpu.run import machine

    return machine(device)


def launch_part(part: Part, arguments: argparse.Namespace, facts: dict[str, Any], seconds: float) -> tuple[Told, str]:
    """What the part said, and what went wrong with it."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--part", part.name, "--facts", json.dumps(facts),
        *(["--small"] if arguments.small else []),
    ]  # fmt: skip
    return launch(command, {"TRITON_INTERPRET": "1"} if arguments.small else {}, seconds)


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts that there is time for; the record is on the disk after each."""
    begin, facts = time.monotonic(), dict[str, Any]()
    record: dict[str, Any] = {
        "name": "gpu-model", "commit": _commit(), "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {}, "rows": [], "checks": [], "parts": [],
        "notes": ["synthetic weights: answers are noise; bounds are of the rates measured in this run"],
    }  # fmt: skip
    if arguments.small:
        record["notes"].append("tiny, on a CPU: shows that the script is sound; no figure means anything")
    for part in PARTS:
        if arguments.only and part.name not in arguments.only:
            continue
        left = arguments.seconds - (time.monotonic() - begin)
        state: dict[str, Any] = {"part": part.name}
        if left < part.least:
            state["skipped"] = f"{left:.0f} s were left of {arguments.seconds:.0f}, it takes at least {part.least:.0f}"
        else:
            print(f"== {part.name}", flush=True)
            started = time.monotonic()
            told, problem = launch_part(part, arguments, facts, min(left, part.limit))
            facts |= told.facts
            record["machine"] = facts.get("machine", {})
            record["rows"] += told.rows
            record["checks"] += told.checks
            record["notes"] += told.notes
            state["seconds"] = round(time.monotonic() - started, 1)
            if problem:
                state["problem"] = problem
        record["parts"].append(state)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _commit() -> str | None:
    answer = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu-model.json"), help="where the record goes")
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU; no figure means anything")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all of it")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="leave the others out")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--say", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--facts", type=json.loads, default={}, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.part, arguments.small, arguments.facts, Teller(arguments.say))
        return 0
    if not arguments.small:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no CUDA device; --small checks the script without one")
    record = run_all(arguments)
    failed = [check["check"] for check in record["checks"] if not check["passed"]]
    broken = [part for part in record["parts"] if "problem" in part]
    left_out = [part for part in record["parts"] if "skipped" in part]
    for part in (*broken, *left_out):
        print(f"{part['part']}: {part.get('problem') or part['skipped']}")
    print(
        f"{len(record['rows'])} rows; {len(record['checks']) - len(failed)} checks passed, {len(failed)} failed; "
        f"{len(broken)} parts broken, {len(left_out)} left out; written to {arguments.out}"
    )
    for name in failed:
        print(f"FAILED {name}")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())

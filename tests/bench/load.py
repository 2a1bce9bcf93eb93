"""`make bench-load`: how long, and in how much memory, do weights come from a warm file to where a model computes?

Every run is a process of its own. The peer is safetensors' `load_file`, which maps the file and touches nothing; beside
it the same with every page touched, and with every tensor copied to memory of its own, which is what a model needs that
brings weights into another order, as ours does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.engine_cpu import MODELS, THREADS, WIDE
from tests.bench.record import Row, paired, write

ROUNDS = 7
GOAL, MEMORY_GOAL = 2.0, 1.2
PEERS = ("load_file", "load_file, touched", "load_file, copied")


def load(kind: str, model: Path) -> dict[str, float]:
    """Load once in this process: seconds, and the peak of what it took beyond what the process had before, in bytes."""
    import resource

    import safetensors.torch
    import torch

    from shoal.kernels import native
    from shoal.workers.checkpoint import open_checkpoint
    from shoal.workers.checkpoint.reader import Reader
    from shoal.workers.model.weights import load_dense, load_experts

    torch.set_num_threads(THREADS)
    native.set_threads(THREADS)
    cpu, file = torch.device("cpu"), model / "model.safetensors"

    def peak() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before, start, cpu_start = peak(), time.perf_counter(), time.process_time()
    kept: Any
    if kind == "shoal":
        checkpoint = open_checkpoint(model)
        checkpoint.reader = Reader(threads=THREADS)
        shape = checkpoint.config
        experts = [load_experts(checkpoint, i, range(shape.num_experts), cpu) for i in range(shape.num_layers)]
        kept = load_dense(checkpoint, cpu), experts
    else:
        kept = safetensors.torch.load_file(file)
        if kind == "load_file, touched":
            for tensor in kept.values():
                tensor.view(-1).view(torch.uint8)[::4096].sum()
        elif kind == "load_file, copied":
            kept = {name: tensor.clone() for name, tensor in kept.items()}
    seconds, busy = time.perf_counter() - start, time.process_time() - cpu_start
    del kept
    return {"seconds": seconds, "cpu": busy, "bytes": peak() - before, "base": before}


def measured(kind: str, model: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.load", "--once", kind, str(model)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(answer.splitlines()[-1])
    return result


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(load(sys.argv[2], Path(sys.argv[3]))))
        return
    from shoal.cluster.checkpoint.make import make_checkpoint

    model = MODELS / "wide"
    if not model.exists():
        make_checkpoint(model, WIDE, seed=3)
    size = (model / "model.safetensors").stat().st_size
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in ("shoal", *PEERS)}
    for _ in range(ROUNDS + 1):
        for kind, results in runs.items():
            results.append(measured(kind, model))
    rates = {kind: [size / run["seconds"] / 1e9 for run in results[1:]] for kind, results in runs.items()}
    rows = [
        paired(
            "weights ready, warm file", "GB/s", rates["shoal"], peer, rates[peer], GOAL if peer == PEERS[0] else None
        )
        for peer in PEERS
    ]
    memory = sorted(run["bytes"] / size for run in runs["shoal"])[len(runs["shoal"]) // 2]
    base = runs["shoal"][0]["base"] / 1e6
    rows.append(
        Row(
            "peak memory beyond the process",
            round(memory, 3),
            "of the file",
            goal=MEMORY_GOAL,
            met=memory <= MEMORY_GOAL,
        )
    )
    rows += [
        Row(f"processor time, {kind}", round(sorted(run["cpu"] for run in results)[len(results) // 2], 4), "s")
        for kind, results in runs.items()
    ]
    write(
        "load",
        rows,
        [
            f"{size / 1e9:.2f} GB: two true layers of the 20b model, vocabulary of 4096; {THREADS} threads.",
            "Ours brings every weight into the order that this CPU's kernels read; load_file only maps the file.",
            f"The process itself, with torch imported, has {base:.0f} MB before.",
        ],
    )


if __name__ == "__main__":
    main()

"""The placement of experts beside DeepSeek's EPLB, on Zipf loads: `python -m tests.bench.balance --eplb eplb.py`.

The peer is one file of github.com/deepseek-ai/EPLB, which must be there already.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.cluster.balance import Loads, balanced_placement
from shoal.workers.experts.placement import Placement
from tests.bench.record import Row, paired, write

LAYERS, EXPERTS = 36, 128


def zipf(seed: int) -> Loads:
    """Each layer has its own order of hot experts."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    ranked = 1000.0 / np.arange(1, EXPERTS + 1)
    return np.stack([rng.permutation(ranked) for _ in range(LAYERS)])


def evenness(placement: Placement, loads: Loads) -> float:
    """Mean load of the ranks over the largest, average of the layers; copies share their expert's load."""
    total = np.zeros((LAYERS, placement.ep_size))
    for layer, experts in enumerate(placement.holders):
        for expert, ranks in enumerate(experts):
            total[layer, list(ranks)] += loads[layer, expert] / len(ranks)
    return float((total.mean(1) / total.max(1)).mean())


def peer_evenness(module: Any, loads: Loads, ranks: int, slots: int) -> tuple[float, float]:
    """The same of the peer, and its seconds."""
    weight = torch.tensor(loads)
    begin = time.perf_counter()
    held, _, copies = module.rebalance_experts(weight, ranks * slots, 1, 1, ranks)
    seconds = time.perf_counter() - begin
    shares = weight.float().gather(1, held) / copies.float().gather(1, held)
    total = shares.view(LAYERS, ranks, slots).sum(-1)
    return float((total.mean(1) / total.max(1).values).mean()), seconds


def main() -> None:
    """Three sizes, five loads each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--eplb", type=Path, required=True)
    spec = importlib.util.spec_from_file_location("eplb", parser.parse_args().eplb)
    assert spec is not None, "not a Python file"
    assert spec.loader is not None, "not a Python file"
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    torch.set_num_threads(1)
    rows = []
    for ranks, slots in ((64, 3), (32, 5), (8, 18)):
        speed, theirs, even, even_theirs = [], [], [], []
        for seed in range(5):
            loads = zipf(seed)
            begin = time.perf_counter()
            placement = balanced_placement(loads, ranks, slots)
            speed.append(1 / (time.perf_counter() - begin))
            even.append(evenness(placement, loads))
            balance, seconds = peer_evenness(peer, loads, ranks, slots)
            theirs.append(1 / seconds)
            even_theirs.append(balance)
        what = f"{LAYERS} x {EXPERTS} experts, {ranks} ranks of {slots}"
        rows.append(paired(f"{what}: placements", "1/s", speed, "EPLB", theirs, goal=5.0))
        ours, best = float(np.mean(even)), float(np.mean(even_theirs))
        rows.append(
            Row(
                f"{what}: mean/max load",
                round(ours, 4),
                "",
                "EPLB",
                round(best, 4),
                round(ours / best, 4),
                goal=round(best - 0.01, 4),
                met=ours >= best - 0.01,
            )
        )
    write("balance", rows)


if __name__ == "__main__":
    main()

"""How often shoal-nano is right through a cluster, at expert-parallel sizes 1, 2 and 4, and on transformers.

    python -m tests.bench.nano [--size 20]

Every question is asked greedily over the public gRPC API; once more while a worker is killed in the middle. Writes
results/nano.json.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from shoal.cluster.client import worker_status
from shoal.cluster.config import load
from shoal.cluster.launch import LocalCluster
from shoal.cluster.nano.answer import Answer, is_right
from shoal.cluster.nano.evaluate import ask_all
from shoal.cluster.nano.example import EFFORTS, Example
from shoal.cluster.nano.questions import grouped, questions
from shoal.cluster.nano.score import Score
from shoal.cluster.nano.twin import Twin
from tests.bench.record import Row, write
from tests.nano.shares import expert_shares

MODEL = Path(__file__).parents[2] / "deploy" / "models" / "nano"
GOALS = {"recall": 0.95, "recall far": 0.95, "add 2 digits": 0.95}
PEER = "transformers, fp32, greedy"


def through_cluster(examples: Sequence[Example], ep_size: int, kill: bool = False) -> list[Answer]:
    """The answers of a whole cluster on this machine, if so wished with kill -9 of its last worker after a third."""
    with TemporaryDirectory() as state:
        flags = {
            "cluster.model": str(MODEL),
            "cluster.ep_size": ep_size,
            "cluster.state_dir": state,
            "router.port": 0,
            "router.http_port": -1,
            "router.metrics_port": 0,
            "worker.kv_tokens": 16384,
        }
        cluster = LocalCluster(load(environment={}, flags=flags), say=print, router_log=Path(state) / "router.log")
        running = cluster.start()

        def watch(done: int, total: int) -> None:
            if kill and done == total // 3:
                worker = cluster.status()["groups"][0]["workers"][-1]
                status = worker_status(worker["address"], timeout=10.0)
                assert status is not None, worker
                os.kill(status.pid, signal.SIGKILL)
                print(f"killed {worker['worker_id']} after {done} answers")

        try:
            return ask_all(running.router, examples, at_once=8, timeout=300.0, progress=watch)
        finally:
            cluster.stop()


def score(examples: Sequence[Example], answers: Sequence[Answer], positions: Sequence[int]) -> Score:
    return Score(sum(is_right(examples[i], answers[i]) for i in positions), len(positions))


def row(case: str, ours: Score, theirs: Score, goal: float | None = None) -> Row:
    """`spread` is Wilson's 95 % interval of the value."""
    low, high = ours.bounds
    return Row(
        case, round(ours.share, 4), "share right", PEER, round(theirs.share, 4),
        spread=(round(low, 4), round(high, 4)), goal=goal, met=None if goal is None else ours.share >= goal,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20, help="questions of each task and effort")
    parser.add_argument("--ep-sizes", type=int, nargs="+", default=[1, 2, 4])
    size, ep_sizes = (lambda a: (a.size, a.ep_sizes))(parser.parse_args())
    examples = questions(size, seed=1)
    date = datetime.now(UTC).date().isoformat()
    by_size = {ep_size: through_cluster(examples, ep_size) for ep_size in ep_sizes}
    theirs = Twin(MODEL).ask_all(examples, date)
    ours = by_size[ep_sizes[0]]
    groups = grouped(examples)
    rows = []
    for task in dict.fromkeys(task for task, _ in groups):
        every = [i for effort in EFFORTS for i in groups[task, effort]]
        rows.append(row(task, score(examples, ours, every), score(examples, theirs, every), GOALS.get(task)))
        for effort in EFFORTS:
            positions = groups[task, effort]
            rows.append(row(f"{task}, {effort}", score(examples, ours, positions), score(examples, theirs, positions)))
    agreed = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(examples)
    rows.append(Row("same answer as transformers, word for word", round(agreed, 4), "share"))
    for ep_size, answers in by_size.items():
        same = sum(a == b for a, b in zip(answers, ours, strict=True)) / len(examples)
        rows.append(Row(f"same answer at expert-parallel size {ep_size} as at {ep_sizes[0]}", same, "share",
                        goal=1.0, met=same == 1.0))  # fmt: skip
    killed = through_cluster(examples, 2, kill=True)
    same = sum(a == b for a, b in zip(killed, ours, strict=True)) / len(examples)
    rows.append(Row("same answer with a worker killed in the middle, at expert-parallel size 2", same, "share",
                    goal=1.0, met=same == 1.0))  # fmt: skip
    least = float(expert_shares(MODEL, examples[:: max(1, len(examples) // 60)]).min())
    rows.append(Row("least used expert of any layer", round(least, 3), "of fair share", goal=0.2, met=least >= 0.2))
    notes = ("value: share of held-out questions answered rightly; spread: Wilson's 95 % interval",)
    write("nano", rows, notes)


if __name__ == "__main__":
    main()

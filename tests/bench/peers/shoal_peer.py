"""The engine under test, in a process like its peers'."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.kernels import native
from shoal.workers.engine.engine import Engine
from tests.bench.peers.serve import Generate, Run, Split, serve
from tests.workers.engines import make_engine, sequence


def load(path: str, threads: int) -> tuple[str, Generate]:
    torch.set_num_threads(threads)
    if native.available():
        native.set_threads(threads)
    return "shoal fp32", generator(make_engine(Path(path), kv_tokens=8192, batch_tokens=2048, caching=False))


def generator(engine: Engine) -> Generate:
    """Greedy generation by an engine's own steps, nothing else in between."""

    def generate(prompts: list[list[int]], new: int) -> Run:
        split = Split()
        sequences = [sequence(p, name=str(i), max_tokens=new) for i, p in enumerate(prompts)]
        for each in sequences:
            engine.submit(each)
        started = False
        while engine.has_work:
            engine.step()
            if not started and all(each.num_generated for each in sequences):
                split.first()
                started = True
        return split.end([each.tokens[each.prompt_length :] for each in sequences])

    return generate


if __name__ == "__main__":
    serve(load)

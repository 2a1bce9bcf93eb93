"""Engines for tests: a checkpoint of a given shape, and an engine of one rank over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from shoal.kernels import target as targets
from shoal.workers import alone
from shoal.workers.assemble import EngineSizes
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.sequence import Sequence, SequenceKey, StopParams
from shoal.workers.experts.exchange import Exchange
from shoal.workers.experts.placement import Placement
from shoal.workers.model.sampling import SamplingParams

Make = Callable[..., Engine]
"""As `make_engine`: tests that ask for it as a fixture run once for every way to choose tokens."""

GREEDY = SamplingParams(temperature=0.0)


def make_engine(path: Path, **options: Any) -> Engine:
    """An engine over a real checkpoint; by default alone in its group. See `engine_of`."""
    return engine_of(open_checkpoint(path), **options)


def engine_of(
    source: WeightSource,
    *,
    kv_tokens: int = 2048,
    batch_tokens: int = 256,
    batch_size: int = 16,
    block_size: int = 16,
    caching: bool = True,
    speculate: int = 0,
    int8: bool = False,
    device: str = "cpu",
    sampler: str = "auto",
    overlap: bool = False,
    graphs: bool | None = None,
    exchange: Exchange | None = None,
    placement: Placement | None = None,
) -> Engine:
    """An engine over any weights; by default on the CPU, alone in its group. `graphs`: decode from recordings."""
    sizes = EngineSizes(
        batch_size=batch_size, batch_tokens=batch_tokens, block_size=block_size, kv_tokens=kv_tokens, caching=caching,
        speculative_tokens=speculate, graphs=graphs, overlap=overlap,
    )  # fmt: skip
    return alone.make_engine(source, targets.choose(device, int8=int8, sampler=sampler), sizes, exchange, placement)


def sequence(
    tokens: Iterable[int],
    *,
    name: str = "r",
    max_tokens: int = 8,
    seed: int = 0,
    sampling: SamplingParams = GREEDY,
    start_offset: int = 0,
    priority: int = 0,
    stop: StopParams | None = None,
) -> Sequence:
    return Sequence(
        key=SequenceKey(name),
        attempt=0,
        tokens=list(tokens),
        start_offset=start_offset,
        seed=seed,
        sampling=sampling,
        stop=stop or StopParams(max_tokens=max_tokens),
        priority=priority,
    )


def run(engine: Engine, *sequences: Sequence) -> list[list[int]]:
    """Submit all, step until done, return what each generated."""
    for s in sequences:
        engine.check(s)
        engine.submit(s)
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    return [s.tokens[s.given_length :] for s in sequences]


def random_tokens(count: int, vocab: int, seed: int) -> list[int]:
    """Reproducible token ids."""
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()

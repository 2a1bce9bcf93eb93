"""Engines for tests: a checkpoint of a given shape, and an engine of one rank over it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from shoal.cluster.placement import even_placement
from shoal.kernels import target as targets
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.engine.engine import Engine, EngineLimits
from shoal.workers.engine.scheduler import Limits
from shoal.workers.engine.sequence import Sequence, SequenceKey, StopParams
from shoal.workers.experts.exchange import Exchange, LocalExchange
from shoal.workers.experts.placement import Placement
from shoal.workers.kv.manager import KvManager
from shoal.workers.kv.memory import plan_kv
from shoal.workers.model.kv_cache import allocate
from shoal.workers.model.model import Model
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.sampling import SamplingParams
from shoal.workers.model.weights import load_dense, load_experts

GREEDY = SamplingParams(temperature=0.0)


def make_engine(
    path: Path,
    *,
    kv_tokens: int = 2048,
    batch_tokens: int = 256,
    batch_size: int = 16,
    block_size: int = 16,
    caching: bool = True,
    speculate: int = 0,
    int8: bool = False,
    device: str = "cpu",
    exchange: Exchange | None = None,
    placement: Placement | None = None,
) -> Engine:
    """An engine over a real checkpoint; by default alone in its group."""
    checkpoint = open_checkpoint(path)
    config, target = checkpoint.config, targets.choose(device, int8=int8)
    exchange = exchange or LocalExchange()
    placement = placement or even_placement(config.num_layers, config.num_experts, 1)
    plan = plan_kv(
        config,
        block_size=block_size,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        itemsize=target.dtype.itemsize,
        tokens=kv_tokens,
    )
    max_context = min(config.max_context, kv_tokens)
    kv = allocate(config, plan, target.dtype, target.device)
    model = Model(config, target, load_dense(checkpoint, target.device), kv, max_context)
    held = [placement.experts_of(layer, exchange.rank) for layer in range(config.num_layers)]
    model.experts = tuple(
        ExpertLayer(config, i, load_experts(checkpoint, i, ids, target.device, int8=int8), exchange)
        for i, ids in enumerate(held)
    )
    window = max((w for w in config.layer_windows if w is not None), default=1)
    manager = KvManager(plan.num_full, plan.num_sliding, block_size, window, caching=caching)
    limits = EngineLimits(Limits(batch_size, batch_tokens, block_size), 1024, max_context, speculate)
    return Engine(model, exchange, manager, limits, tuple(bytes([i % 256]) for i in range(config.vocab_size)))


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

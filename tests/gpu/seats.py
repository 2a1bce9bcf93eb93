"""Sequences in the middle of their lives, without computing what came before.

Keys and values are noise then, which costs attention the same; a thousand tokens of 256 sequences need not be
prefilled to see how fast the next ones come.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

from shoal.workers.engine.engine import Engine
from shoal.workers.engine.sequence import Sequence, SequenceKey, StopParams
from shoal.workers.model.sampling import SamplingParams

_CHUNK = 512  # most tokens given blocks at once: sliding blocks that the window left are taken back between
RUN_ON = 96
"""Steps that a seated sequence has room for."""

GREEDY = SamplingParams(temperature=0.0)


def fill_cache(engine: Engine) -> None:
    """Noise of the size of real keys and values everywhere."""
    generator = torch.Generator(engine.model.target.device).manual_seed(0)
    for tensor in (*engine.model.kv.keys, *engine.model.kv.values):
        tensor.normal_(generator=generator)


def ids(count: int, engine: Engine, seed: object) -> list[int]:
    """Random tokens."""
    return random.Random(str(seed)).choices(range(engine.model.config.vocab_size), k=count)


def fresh(engine: Engine, name: str, prompt: int, output: int) -> Sequence:
    """One that has still everything before it."""
    stop = StopParams(max_tokens=output)
    return Sequence(SequenceKey(name), 0, ids(prompt, engine, name), 0, 0, GREEDY, stop)


def seat(engine: Engine, name: str, context: int, generated: int, output: int) -> Sequence:
    """One with `context` tokens, `generated` of them generated, that decodes in the next step."""
    stop = StopParams(max_tokens=output)
    sequence = Sequence(SequenceKey(name), 0, ids(context, engine, name), generated, 0, GREEDY, stop)
    chunk = _chunk(engine)
    while sequence.computed < context - 1:
        tokens = min(chunk, context - 1 - sequence.computed)
        engine.kv.extend(sequence.tables, sequence.computed, tokens)
        sequence.computed += tokens
        engine.kv.commit(sequence.tables, sequence.tokens, sequence.computed, b"")
    engine.running.append(sequence)
    return sequence


def clear(engine: Engine) -> None:
    """Forget all sequences."""
    engine.drop_all()
    engine.check_integrity()


def holds(engine: Engine, batch: int, context: int) -> bool:
    """Whether so many sequences of so many tokens fit the cache, and run on."""
    block, kv = engine.kv.block_size, engine.model.kv.plan
    window = -(-engine.kv.window // block) + 2
    full, chunk = -(-(context + RUN_ON) // block), -(-_chunk(engine) // block)
    return batch * full <= kv.num_full and batch * window + chunk <= kv.num_sliding


def _chunk(engine: Engine) -> int:
    return min(_CHUNK, engine.limits.batch.max_batch_tokens)


def timed_steps(engine: Engine, seconds: float, least: int = 5, most: int = 64) -> list[float]:
    """Seconds of each step, for about so long; the result of a step is on the host when it ends, or where steps overlap
    that of the step before."""
    took: list[float] = []
    while len(took) < least or (sum(took) < seconds and len(took) < most):
        begin = time.perf_counter()
        engine.step()
        took.append(time.perf_counter() - begin)
    return took


def experts_hit(engine: Engine, step: Callable[[], object]) -> float:
    """Mean number of distinct experts per layer that `step` computes with."""
    before = [layer.load.clone() for layer in engine.model.experts]
    step()
    changed = [int((layer.load != old).sum()) for layer, old in zip(engine.model.experts, before, strict=True)]
    return sum(changed) / len(changed)

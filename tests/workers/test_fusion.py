"""A step in one native call is the step layer by layer, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.kernels import native
from shoal.workers.engine.batch import step_ints
from shoal.workers.engine.scheduler import Work
from shoal.workers.model.upload import Upload
from tests.workers.engines import make_engine, random_tokens, sequence

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.reason()}")


def test_a_fused_step_is_the_split_step(tiny: Path) -> None:
    """Prompts, a chunk and decodes in one batch: logits, both caches and the experts' loads."""
    engine = make_engine(tiny)
    model = engine.model
    assert model._fused is not None
    sequences = [sequence(random_tokens(n, 1000, seed=n), name=f"r{n}", max_tokens=4) for n in (5, 23, 40)]
    for s in sequences:
        engine.submit(s)
        engine.step()
    late = sequence(random_tokens(37, 1000, seed=9), name="late")
    engine.kv.extend(late.tables, 0, 37)
    for s in sequences:
        engine.kv.extend(s.tables, s.computed, 1)
    ints = step_ints([Work(s, 1) for s in sequences] + [Work(late, 37)], model.kv.plan.block_size)
    step = ints.upload(Upload(torch.device("cpu")))

    before = [layer.loads for layer in model.experts]
    fused = model.forward(step)
    caches = [t.clone() for t in (*model.kv.keys, *model.kv.values)]
    between = [layer.loads for layer in model.experts]
    split = model.forward_split(step, model.kv)
    after = [layer.loads for layer in model.experts]

    assert torch.equal(split, fused)
    assert all(map(torch.equal, caches, (*model.kv.keys, *model.kv.values)))
    for b, m, a in zip(before, between, after, strict=True):
        assert {e: m[e] - b[e] for e in m} == {e: a[e] - m[e] for e in m}
    assert {"attention", "routing", "experts", "unembedding"} <= set(model.stopwatch.seconds)


def test_a_token_outside_the_vocabulary_never_reaches_memory(tiny: Path) -> None:
    """Our own mistake is an assertion before anything is written."""
    engine = make_engine(tiny)
    s = sequence([engine.model.config.vocab_size])
    engine.kv.extend(s.tables, 0, 1)
    step = step_ints([Work(s, 1)], 16).upload(Upload(torch.device("cpu")))
    with pytest.raises(AssertionError, match="outside the vocabulary"):
        engine.model.forward(step)


def test_a_rank_among_others_does_not_fuse(tiny: Path) -> None:
    """Its tokens travel between a layer's halves."""
    engine = make_engine(tiny)
    layers = engine.model.experts
    for layer in layers:
        layer.exchange = type("Two", (), {"rank": 0, "size": 2})()
    engine.model.experts = layers
    assert engine.model._fused is None

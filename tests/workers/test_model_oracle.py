"""The model against transformers' GptOssForCausalLM on the same checkpoint, in fp32."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import PRESETS, Preset
from shoal.workers.engine.batch import step_ints
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.scheduler import Work
from shoal.workers.experts.exchange import Wish
from shoal.workers.model.upload import Upload
from tests.workers.engines import make_engine, random_tokens, run, sequence

os.environ["HF_HUB_OFFLINE"] = "1"

SHAPES = [
    (PRESETS["tiny"], "hf"),
    (Preset("odd", 3, 96, 160, 5, 6, 3, vocab_size=509, sliding_window=7, experts_per_token=2, swiglu_limit=3.0), "hf"),
    (Preset("16-experts", 2, 128, 96, 16, 4, 4, vocab_size=313, sliding_window=16, experts_per_token=3), "original"),
    (Preset("32-experts", 2, 128, 64, 32, 8, 1, vocab_size=300, sliding_window=16), "hf"),
    (Preset("128-experts", 2, 64, 64, 128, 4, 2, vocab_size=401, sliding_window=20), "original"),
]


def reference(path: Path) -> Any:
    """transformers' model of a checkpoint, in fp32."""
    from transformers import GptOssForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    model = GptOssForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True), attn_implementation="eager"
    )
    model.train(False)
    return model


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0].name}-{shape[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint of either layout and transformers' model of the same weights."""
    preset, layout = request.param
    folder = tmp_path_factory.mktemp("oracle")
    theirs = make_checkpoint(folder / "hf", preset, seed=7)
    ours = theirs if layout == "hf" else make_checkpoint(folder / "ours", preset, seed=7, layout=layout)
    return ours, reference(theirs)


def logits_of(engine: Engine, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits [T, V] of every position, computed in the given chunks."""
    s = sequence(tokens)
    rows = []
    for chunk in chunks:
        engine.kv.extend(s.tables, s.computed, chunk)
        step = step_ints([Work(s, chunk)], engine.model.kv.plan.block_size).upload(Upload(engine.model.target.device))
        engine.exchange.agree(0, chunk, Wish.NONE)
        rows.append(engine.model.forward(replace(step, logit_rows=torch.arange(chunk))))
        s.computed += chunk
        engine.kv.commit(s.tables, s.tokens, s.computed, b"")
    engine.kv.release(s.tables)
    return torch.cat(rows)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """1e-3 absolute and 1e-4 relative: what two exact fp32 implementations keep."""
    assert (ours - theirs).abs().max().item() < 1e-3
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-4


@pytest.mark.parametrize(
    "chunks",
    [lambda n: [n], lambda n: [n - 5, 1, 1, 1, 1, 1], lambda n: [13, 50, n - 63]],
    ids=["prefill", "then-decode", "chunked"],
)
def test_logits_equal_transformers(pair: tuple[Path, Any], chunks: Callable[[int], list[int]]) -> None:
    """Prefill, decode and chunked prefill past the sliding window give transformers' logits."""
    path, theirs = pair
    engine = make_engine(path)
    tokens = random_tokens(80, engine.model.config.vocab_size, seed=3)
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert_close(logits_of(engine, tokens, chunks(80)), expected)


def test_greedy_generation_equals_transformers(pair: tuple[Path, Any]) -> None:
    """Greedy tokens are transformers' greedy tokens, for several prompts in one batch."""
    path, theirs = pair
    engine = make_engine(path)
    prompts = [random_tokens(n, engine.model.config.vocab_size, seed=n) for n in (5, 24, 41)]
    ours = run(engine, *(sequence(p, name=str(i), max_tokens=24) for i, p in enumerate(prompts)))
    for prompt, generated in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            full = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None
            )
        assert full[0, len(prompt) :].tolist() == generated

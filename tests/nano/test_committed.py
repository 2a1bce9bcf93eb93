"""The committed checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from shoal.cluster.nano.answer import is_right
from shoal.cluster.nano.questions import questions
from shoal.cluster.nano.shape import NANO
from shoal.cluster.nano.twin import Twin
from shoal.workers.checkpoint import open_checkpoint
from tests.nano.conftest import NANO_DIR
from tests.nano.shares import expert_shares
from tests.workers.engines import make_engine, run, sequence

DATE = "2026-11-21"


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin(NANO_DIR)


def test_it_is_small_and_valid() -> None:
    """Under 10 MB in all, of the declared shape, with its card and recipe."""
    assert sum(path.stat().st_size for path in NANO_DIR.iterdir()) < 10e6
    assert NANO.config() == open_checkpoint(NANO_DIR).config
    assert {"README.md", "recipe.toml", "log.csv", "exams.csv", "curve.svg"} <= {p.name for p in NANO_DIR.iterdir()}


def test_every_expert_is_used() -> None:
    """None of any layer under a fifth of its fair share."""
    assert float(expert_shares(NANO_DIR, questions(1, seed=2)).min()) >= 0.2


def test_the_engine_says_what_transformers_says(twin: Twin) -> None:
    """Greedy tokens of our engine and of transformers on the same prompts, one after the other."""
    examples = random.Random(3).sample(questions(1, seed=3, tasks=["add 2 digits", "recall", "tool call", "json"]), 6)
    prompts = [twin.prompt(example, DATE) for example in examples]
    with torch.no_grad():
        expected = [twin.generate(prompt) for prompt in prompts]
    engine = make_engine(Path(NANO_DIR), kv_tokens=4096)
    requests = [sequence(p, name=str(i), max_tokens=len(expected[i])) for i, p in enumerate(prompts)]
    assert expected == run(engine, *requests)


def test_it_knows_what_it_was_taught(twin: Twin) -> None:
    """Held-out sums of two digits and facts told before, at every effort: nearly all right."""
    examples = questions(3, seed=4, tasks=["add 2 digits", "recall"])
    answers = twin.ask_all(examples, DATE)
    right = sum(is_right(example, answer) for example, answer in zip(examples, answers, strict=True))
    assert right >= len(examples) - 1

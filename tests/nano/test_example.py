"""Which examples are held out."""

from __future__ import annotations

import random
import re

import pytest

from shoal.cluster.nano.example import EFFORTS, draw, split_of
from shoal.cluster.nano.mixture import EXAMS, Mixture


@pytest.mark.parametrize("name", EXAMS)
def test_every_task_has_both_splits(name: str) -> None:
    """Training and examination never share a key."""
    rng = random.Random(3)
    for effort in EFFORTS:
        assert split_of(draw(EXAMS[name], rng, effort, "held-out").key) == "held-out"
        assert split_of(draw(EXAMS[name], rng, effort, "train").key) == "train"


def test_a_tenth_is_held_out() -> None:
    """One key in ten."""
    held = sum(split_of(f"key {n}") == "held-out" for n in range(10_000))
    assert 900 < held < 1100


def test_training_never_shows_a_held_out_sum_or_name() -> None:
    """Also not in the small talk before a question, where answers are learned too."""
    mixture = Mixture({"add 2 digits": 1, "recall": 1, "recall far": 1})
    stream = mixture.examples(11)
    for _ in range(600):
        example = next(stream)
        for said in example.messages:
            if said.content.startswith("My name is "):
                name = said.content.removeprefix("My name is ").split(".")[0]
                assert split_of(f"recall {name}") == "train"
            if found := re.fullmatch(r"What is (\d+) \+ (\d+)\?", said.content):
                a, b = sorted(map(int, found.groups()))
                assert split_of(f"add {a} {b}") == "train"


def test_examples_follow_the_seed() -> None:
    """The same seed gives the same lessons."""
    one, other = Mixture({"json": 1, "recall": 1}).examples(5), Mixture({"json": 1, "recall": 1}).examples(5)
    assert [next(one) for _ in range(20)] == [next(other) for _ in range(20)]


def test_an_unknown_task_is_refused() -> None:
    """The message names it."""
    with pytest.raises(ValueError, match="'sing' is not one of"):
        Mixture({"sing": 1})

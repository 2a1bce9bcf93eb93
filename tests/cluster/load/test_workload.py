"""`shoal.cluster.bench.workload` and `lengths`: what is asked follows from a seed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.bench.lengths import Lengths, parse_lengths
from shoal.cluster.bench.workload import Workload, draw

LOAD = Workload(parse_lengths("uniform:3:9"), parse_lengths("normal:5:2"), conversations=50, rate=10.0, turns=2)


def shape(load: Workload) -> list[tuple[float, list[tuple[int, int]]]]:
    """When each conversation begins, and its lengths."""
    return [(c.at, [(len(turn.tokens), turn.output) for turn in c.turns]) for c in draw(load, 100)]


def test_a_seed_decides_everything() -> None:
    """The same seed and salt: the same load; another salt: other tokens at the same times and lengths."""
    assert draw(LOAD, 100) == draw(LOAD, 100)
    other = replace(LOAD, salt=1)
    assert shape(LOAD) == shape(other)
    assert all(a.turns[0].tokens != b.turns[0].tokens for a, b in zip(draw(LOAD, 5000), draw(other, 5000), strict=True))
    assert shape(LOAD) != shape(replace(LOAD, seed=1))


def test_all_prompts_begin_with_the_shared_prefix() -> None:
    """First turns do, further ones have it in their history."""
    conversations = draw(replace(LOAD, shared_prefix=7), 100)
    assert len({c.turns[0].tokens[:7] for c in conversations}) == 1
    assert {len(c.turns[1].tokens) <= 9 for c in conversations} == {True}


def test_arrivals_have_the_rate() -> None:
    """Evenly, or at random with the mean that was asked for; a closed loop has none."""
    even = draw(replace(LOAD, poisson=False), 100)
    assert [i / 10 for i in range(50)] == pytest.approx([c.at for c in even])
    many = draw(replace(LOAD, conversations=4000, turns=1), 100)
    assert many[-1].at == pytest.approx(400, rel=0.05)
    assert many == sorted(many, key=lambda c: c.at)
    assert {0.0} == {c.at for c in draw(replace(LOAD, rate=0.0), 100)}


@given(
    text=st.one_of(
        st.integers(1, 9999).map(str),
        st.tuples(st.integers(1, 99), st.integers(0, 99)).map(lambda p: f"uniform:{p[0]}:{p[0] + p[1]}"),
        st.tuples(st.integers(1, 999), st.integers(0, 99)).map(lambda p: f"normal:{p[0]}:{p[1]}"),
    ),
    seed=st.integers(0, 9),
)
def test_lengths_stay_in_their_bounds(text: str, seed: int) -> None:
    """At least one token, and for fixed and uniform lengths never more than the longest."""
    lengths, chance = parse_lengths(text), random.Random(seed)
    drawn = [lengths.draw(chance) for _ in range(20)]
    assert min(drawn) >= 1
    assert lengths.kind == "normal" or max(drawn) <= lengths.longest


def test_the_longest_sequence_is_known_before() -> None:
    """Prefix, and every turn's prompt and answer."""
    assert replace(LOAD, shared_prefix=10).longest == 10 + 2 * (9 + 13)
    assert Lengths("fixed", 7).longest == 7


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "1.5", "x", "uniform:9:3", "uniform:1", "normal:0:1", "normal:5:-1", "normal:5:inf", "1:2"]
)
def test_what_is_no_length_is_refused(text: str) -> None:
    """With what would be one."""
    with pytest.raises(ValueError, match="is no length such as 256"):
        parse_lengths(text)

"""Sampling: the distribution is right, and a place in a sequence always draws the same number."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.workers.errors import RequestError
from shoal.workers.model.sampling import SamplingParams, sample, uniform

LOGITS = np.array([1.0, 3.0, 3.0, -2.0, 0.5], dtype=np.float32)


def chosen(params: SamplingParams, count: int = 4000, masked: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """How often each token is chosen over many positions."""
    ids = [sample(LOGITS, params, uniform(1, 0, position), masked=masked).id for position in range(count)]
    return np.bincount(ids, minlength=len(LOGITS)) / count


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    """Ties are broken the same way always."""
    assert sample(LOGITS, SamplingParams(temperature=0.0), 0.0).id == 1


def test_frequencies_follow_the_softmax() -> None:
    """At temperature 1 tokens come as often as the softmax says."""
    expected = torch.softmax(torch.from_numpy(LOGITS).double(), 0).numpy()
    assert np.abs(chosen(SamplingParams()) - expected).max() < 0.03


def test_temperature_sharpens() -> None:
    """Logits are divided by the temperature."""
    expected = torch.softmax(torch.from_numpy(LOGITS).double() / 0.5, 0).numpy()
    assert np.abs(chosen(SamplingParams(temperature=0.5)) - expected).max() < 0.03


def test_top_k_keeps_exactly_k() -> None:
    """Of two equal logits at the edge the lower id stays."""
    assert chosen(SamplingParams(top_k=1)).tolist() == [0, 1, 0, 0, 0]


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    """0.8 is reached by the two likeliest."""
    share = chosen(SamplingParams(top_p=0.8))
    assert share[0] + share[3] + share[4] == 0.0
    assert share[1] > 0.4
    assert share[2] > 0.4


def test_min_p_drops_the_unlikely() -> None:
    """Tokens less than half as likely as the likeliest go."""
    assert {1, 2} == set(np.flatnonzero(chosen(SamplingParams(min_p=0.5))))


def test_masked_tokens_never_come() -> None:
    """Masked ids have no probability, greedy or not."""
    assert sample(LOGITS, SamplingParams(temperature=0.0), 0.0, masked=(1,)).id == 2
    assert chosen(SamplingParams(), 500, masked=(1, 2))[1] == 0.0


def test_penalties_and_bias_change_the_logits() -> None:
    """Repetition divides what was seen, presence and frequency subtract, bias adds."""
    assert sample(LOGITS, SamplingParams(temperature=0.0, repetition_penalty=2.0), 0, prompt=(1,)).id == 2
    assert sample(LOGITS, SamplingParams(temperature=0.0, presence_penalty=0.1), 0, output=(1,)).id == 2
    assert sample(LOGITS, SamplingParams(temperature=0.0, presence_penalty=0.1), 0, prompt=(1,)).id == 1
    assert sample(LOGITS, SamplingParams(temperature=0.0, frequency_penalty=1.5), 0, output=(1, 1, 2, 2)).id == 0
    assert sample(LOGITS, SamplingParams(temperature=0.0, logit_bias={3: 6.0}), 0).id == 3


def test_logprobs_are_of_the_whole_distribution() -> None:
    """The chosen token's log-probability and the likeliest alternatives, lower id first among equals."""
    result = sample(LOGITS, SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2), 0.0)
    expected = torch.log_softmax(torch.from_numpy(LOGITS).double(), 0)
    assert result.logprob == pytest.approx(expected[1].item())
    assert [token for token, _ in result.top] == [1, 2]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 200_000))
def test_a_place_always_draws_the_same_number(seed: int, choice: int, position: int) -> None:
    """Numbers depend on (seed, choice, position) alone and lie in [0, 1), as its own generator draws."""
    key = np.array([seed, choice], dtype=np.uint64)  # a plain list would pass through float64
    own = np.random.Philox(key=key, counter=np.array([position, 0, 0, 0], dtype=np.uint64))
    found = uniform(seed, choice, position)
    assert np.random.Generator(own).random() == found
    uniform(seed ^ 1, choice, position + 1)
    assert found == uniform(seed, choice, position)
    assert 0.0 <= found < 1.0


def test_threads_draw_by_themselves() -> None:
    """Eight at once draw what one does."""
    places = [(seed, choice, 100 * seed) for seed in range(200) for choice in range(8)]
    expected = [uniform(*place) for place in places]
    with ThreadPoolExecutor(8) as pool:
        assert all(expected == found for found in pool.map(lambda _: [uniform(*p) for p in places], range(8)))


def test_numbers_are_independent_of_their_neighbours() -> None:
    """Over seeds and over positions the draws look uniform."""
    for draws in ([uniform(7, 0, p) for p in range(3000)], [uniform(s, 0, 5) for s in range(3000)]):
        assert abs(np.mean(draws) - 0.5) < 0.02
        assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 2.0),
     ("repetition_penalty", 0.0), ("presence_penalty", float("inf")), ("top_logprobs", 1000)],
)  # fmt: skip
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    """The error names the field."""
    with pytest.raises(RequestError, match=f"sampling.{field}"):
        replace(SamplingParams(), **{field: value})  # type: ignore[arg-type]  # the field is a parameter of the test


@given(
    seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 0.7, 1.5]), top_p=st.sampled_from([0.3, 1.0]),
    top_k=st.integers(0, 4), penalty=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_allowing_some_is_masking_the_others(
    seed: int, temperature: float, top_p: float, top_k: int, penalty: float
) -> None:
    """Choosing among allowed ids gives the token that masking all others gives, with the same log-probability."""
    chance = np.random.default_rng(seed)
    row = chance.normal(size=40).astype(np.float32)
    allowed = np.sort(chance.choice(40, size=int(chance.integers(1, 40)), replace=False)).astype(np.int64)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, presence_penalty=penalty, logprobs=True)
    others = sorted(set(range(40)) - set(allowed.tolist()))
    draw = chance.random()

    masked, chosen = sample(row, params, draw, [1], [2, 3], others), sample(row, params, draw, [1], [2, 3], (), allowed)

    assert masked.id == chosen.id
    assert masked.logprob == pytest.approx(chosen.logprob)


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=6, max_size=40),
    barred=st.sets(st.integers(0, 5), max_size=4),
    draw=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.integers(0, 4),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_barring_a_few_is_allowing_the_rest(
    logits: list[float], barred: set[int], draw: float, temperature: float, top_k: int, top_p: float
) -> None:
    """Whichever of the two is the shorter way to say it, the same token is chosen."""
    row, params = np.array(logits, dtype=np.float32), SamplingParams(temperature, top_p, top_k)
    allowed = np.array([i for i in range(len(row)) if i not in barred], dtype=np.int64)

    few = np.array(sorted(barred), dtype=np.int64)
    assert sample(row, params, draw, masked=few).id == sample(row, params, draw, allowed=allowed).id

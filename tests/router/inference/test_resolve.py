"""Checking and completing what clients ask for."""

from __future__ import annotations

import math

import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.errors import FieldError, PromptTooLongError
from shoal.router.fleet.backend import ModelFacts
from shoal.router.inference.resolve import checked_name, seed_of, worker_limits, worker_sampling

FACTS = ModelFacts(max_context=100, vocab_size=50, eos_token_ids=(7, 8))


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (api.Sampling(temperature=-1), "sampling.temperature"),
        (api.Sampling(temperature=2.1), "sampling.temperature"),
        (api.Sampling(temperature=math.nan), "sampling.temperature"),
        (api.Sampling(temperature=math.inf), "sampling.temperature"),
        (api.Sampling(top_p=0), "sampling.top_p"),
        (api.Sampling(top_p=1.01), "sampling.top_p"),
        (api.Sampling(min_p=-0.1), "sampling.min_p"),
        (api.Sampling(repetition_penalty=0), "sampling.repetition_penalty"),
        (api.Sampling(presence_penalty=3), "sampling.presence_penalty"),
        (api.Sampling(frequency_penalty=-3), "sampling.frequency_penalty"),
        (api.Sampling(logit_bias={50: 1.0}), "sampling.logit_bias"),
        (api.Sampling(logit_bias={1: math.nan}), "sampling.logit_bias"),
    ],
)
def test_wrong_sampling_is_refused_by_its_field(sampling: api.Sampling, field: str) -> None:
    """Each value out of range is an error that names its field."""
    with pytest.raises(FieldError) as caught:
        worker_sampling(sampling, FACTS)

    assert caught.value.field == field


def test_absent_sampling_takes_the_defaults() -> None:
    """Nothing said is temperature 1, top_p 1 and everything else off."""
    made = worker_sampling(api.Sampling(), FACTS)

    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (1, 1, 0, 0)
    assert (made.repetition_penalty, made.presence_penalty, made.frequency_penalty) == (1, 0, 0)


def test_zero_temperature_is_kept() -> None:
    """Zero is a value, not an absence: greedy."""
    assert worker_sampling(api.Sampling(temperature=0), FACTS).temperature == 0


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (api.Limits(max_tokens=0), "limits.max_tokens"),
        (api.Limits(max_tokens=3, min_tokens=4), "limits.min_tokens"),
        (api.Limits(stop=[""]), "limits.stop"),
        (api.Limits(stop=["x" * 1025]), "limits.stop"),
        (api.Limits(stop=["x"] * 17), "limits.stop"),
        (api.Limits(stop_token_ids=[50]), "limits.stop_token_ids"),
    ],
)
def test_wrong_limits_are_refused_by_their_field(limits: api.Limits, field: str) -> None:
    """Each impossible limit is an error that names its field."""
    with pytest.raises(FieldError) as caught:
        worker_limits(limits, 10, FACTS, stop_ids=(), stop_bytes=True)

    assert caught.value.field == field


@pytest.mark.parametrize(("asked", "expected"), [(None, 90), (5, 5), (1000, 90)])
def test_an_answer_fits_the_context(asked: int | None, expected: int) -> None:
    """The answer has what the prompt leaves, or less when asked for less."""
    limits = api.Limits() if asked is None else api.Limits(max_tokens=asked)

    assert worker_limits(limits, 10, FACTS, stop_ids=(), stop_bytes=True).max_tokens == expected


@pytest.mark.parametrize(("tokens", "over"), [(100, 1), (130, 31)])
def test_a_long_prompt_is_told_by_how_much(tokens: int, over: int) -> None:
    """A prompt that leaves no room for one token is refused with the number of tokens to cut."""
    with pytest.raises(PromptTooLongError, match=f"{over} too many") as caught:
        worker_limits(api.Limits(), tokens, FACTS, stop_ids=(), stop_bytes=True)

    assert caught.value.over == over


def test_end_tokens_are_the_models_the_formats_and_the_callers() -> None:
    """All end tokens are sent once, in order; with ignore_eos only the caller's own."""
    limits = api.Limits(stop_token_ids=[3, 8])
    made = worker_limits(limits, 1, FACTS, stop_ids=(9,), stop_bytes=True)
    limits.ignore_eos = True
    ignoring = worker_limits(limits, 1, FACTS, stop_ids=(9,), stop_bytes=True)

    assert list(made.stop_token_ids) == [3, 7, 8, 9]
    assert list(ignoring.stop_token_ids) == [3, 8]


def test_stop_texts_are_sent_as_bytes_where_the_worker_may_look() -> None:
    """A worker is told stop texts only when it may end on them."""
    limits = api.Limits(stop=["é"])

    assert list(worker_limits(limits, 1, FACTS, stop_ids=(), stop_bytes=True).stop_bytes) == ["é".encode()]
    assert list(worker_limits(limits, 1, FACTS, stop_ids=(), stop_bytes=False).stop_bytes) == []


def test_a_given_seed_is_kept_and_a_missing_one_is_drawn() -> None:
    """Zero is a seed; without one, two requests get different ones."""
    assert seed_of(api.Sampling(seed=0)) == 0
    assert seed_of(api.Sampling()) != seed_of(api.Sampling())


@pytest.mark.parametrize("name", ["x" * 257, "a\nb", "a\x00"])
def test_names_are_short_and_printable(name: str) -> None:
    """A name that would not fit a log line is refused by its field."""
    with pytest.raises(FieldError, match="session_id"):
        checked_name("session_id", name)

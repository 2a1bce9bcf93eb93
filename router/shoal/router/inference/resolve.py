"""What a client asked for, checked and completed, as a worker is told it. Pure but for the draw of a seed."""

from __future__ import annotations

import math
import secrets

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1 import worker_pb2 as pb
from shoal.router.errors import FieldError, ModelAbsentError, PromptTooLongError
from shoal.router.fleet.backend import ModelFacts

MOST_STOPS = 16
MOST_LIKELIEST = 20
"""Of the likeliest tokens at one place."""
LONGEST_STOP = 1024
"""Characters of one stop text."""
LONGEST_NAME = 256
"""Characters of a session's or a request's name."""


def checked_name(field: str, name: str) -> str:
    """A name given by a caller, or FieldError. Empty is allowed."""
    if len(name) > LONGEST_NAME:
        raise FieldError(field, f"has {len(name)} characters, at most {LONGEST_NAME} are allowed")
    if not name.isprintable():
        raise FieldError(field, "has characters that cannot be printed")
    return name


def check_model(name: str, served: str) -> None:
    """Raises ModelAbsentError unless `name` is the model that is served; empty stands for it."""
    if name and name != served:
        raise ModelAbsentError(f"there is no model {name!r}; served is {served!r}")


def seed_of(sampling: api.Sampling) -> int:
    """The given seed, or one drawn now: from here on the output is fixed."""
    return sampling.seed if sampling.HasField("seed") else secrets.randbits(63)


def is_repeatable(sampling: api.Sampling) -> bool:
    """Whether the same request gives the same answer: greedy, or with a seed of the caller's own.

    >>> is_repeatable(api.Sampling(seed=7)), is_repeatable(api.Sampling(temperature=0)), is_repeatable(api.Sampling())
    (True, True, False)
    """
    return sampling.HasField("seed") or (sampling.HasField("temperature") and sampling.temperature == 0)


def worker_sampling(
    sampling: api.Sampling, facts: ModelFacts, *, logprobs: bool = False, top_logprobs: int = 0
) -> pb.WorkerSampling:
    """Every field set: the caller's or the model's default. Raises FieldError."""
    if top_logprobs > MOST_LIKELIEST:
        raise FieldError("top_logprobs", f"is {top_logprobs}, at most {MOST_LIKELIEST} are allowed")
    if top_logprobs and not logprobs:
        raise FieldError("top_logprobs", "needs logprobs")
    for token, bias in sampling.logit_bias.items():
        if token >= facts.vocab_size:
            raise FieldError("sampling.logit_bias", f"names token {token}, the vocabulary has {facts.vocab_size}")
        _range("sampling.logit_bias", bias, -100.0, 100.0)
    return pb.WorkerSampling(
        temperature=_given(sampling, "temperature", 1.0, 0.0, 2.0),
        top_p=_given(sampling, "top_p", 1.0, 0.0, 1.0, above=True),
        top_k=sampling.top_k,
        min_p=_given(sampling, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=_given(sampling, "repetition_penalty", 1.0, 0.0, 10.0, above=True),
        presence_penalty=_given(sampling, "presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=_given(sampling, "frequency_penalty", 0.0, -2.0, 2.0),
        logit_bias=dict(sampling.logit_bias),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def worker_limits(
    limits: api.Limits,
    prompt_tokens: int,
    facts: ModelFacts,
    *,
    stop_ids: tuple[int, ...],
    stop_bytes: bool,
    go_on_after: tuple[int, ...] = (),
) -> pb.WorkerLimits:
    """Limits within the context. `stop_ids` end a turn besides the model's own end tokens, unless those are ignored;
    `stop_bytes` says whether the worker watches for the stop texts too; `go_on_after` are end tokens that end nothing
    here.

    Raises FieldError, and PromptTooLongError when there is no room for one token.
    """
    room = facts.max_context - prompt_tokens
    if room < 1:
        raise PromptTooLongError(prompt_tokens, facts.max_context)
    if limits.HasField("max_tokens") and limits.max_tokens < 1:
        raise FieldError("limits.max_tokens", "must be at least 1")
    most = min(limits.max_tokens, room) if limits.HasField("max_tokens") else room
    if limits.min_tokens > most:
        raise FieldError("limits.min_tokens", f"is {limits.min_tokens}, but at most {most} tokens can be generated")
    if len(limits.stop) > MOST_STOPS:
        raise FieldError("limits.stop", f"has {len(limits.stop)} texts, at most {MOST_STOPS} are allowed")
    if any(not 1 <= len(stop) <= LONGEST_STOP for stop in limits.stop):
        raise FieldError("limits.stop", f"has a text that is empty or longer than {LONGEST_STOP} characters")
    for token in limits.stop_token_ids:
        if token >= facts.vocab_size:
            raise FieldError("limits.stop_token_ids", f"names token {token}, the vocabulary has {facts.vocab_size}")
    ends = set() if limits.ignore_eos else {*facts.eos_token_ids, *stop_ids}.difference(go_on_after)
    return pb.WorkerLimits(
        max_tokens=most,
        min_tokens=limits.min_tokens,
        stop_token_ids=sorted({*ends, *limits.stop_token_ids}),
        stop_bytes=[stop.encode() for stop in limits.stop] if stop_bytes else [],
    )


def _given(sampling: api.Sampling, name: str, default: float, low: float, high: float, above: bool = False) -> float:
    """The optional field `name` if it is set and in range."""
    if not sampling.HasField(name):  # type: ignore[arg-type]  # the stub wants a literal
        return default
    value: float = getattr(sampling, name)
    _range(f"sampling.{name}", value, low, high, above)
    return value


def _range(field: str, value: float, low: float, high: float, above: bool = False) -> None:
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        raise FieldError(field, f"must be {'above' if above else 'from'} {low:g} to {high:g}, not {value:g}")

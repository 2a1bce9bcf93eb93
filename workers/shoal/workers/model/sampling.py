"""Choosing the next token from one row of logits.

Random numbers come from Philox4x64 (Salmon et al., SC 2011) keyed by (seed, choice) with the token's position as the
counter: no state is carried from token to token, so a replay from any prefix draws the same tokens. All arithmetic is
float64 over one row at a time, so the batch cannot matter.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.workers.errors import RequestError

Logits = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens of one sequence are chosen. RequestError names a field out of range."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, ok in (
            ("temperature", 0.0 <= self.temperature <= 100.0),
            ("top_p", 0.0 < self.top_p <= 1.0),
            ("top_k", self.top_k >= 0),
            ("min_p", 0.0 <= self.min_p <= 1.0),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf),
            ("presence_penalty", math.isfinite(self.presence_penalty)),
            ("frequency_penalty", math.isfinite(self.frequency_penalty)),
            ("logit_bias", all(math.isfinite(bias) for bias in self.logit_bias.values())),
            ("top_logprobs", 0 <= self.top_logprobs <= 128),
        ):
            if not ok:
                raise RequestError(f"sampling.{name} is out of range: {getattr(self, name)!r}")

    @property
    def adjusts_logits(self) -> bool:
        """Whether anything is done to the logits before the choice."""
        return bool(
            self.logit_bias or self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class Sampled:
    """One chosen token; log-probabilities are of the distribution at temperature 1 after penalties."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class _Philox(threading.local):
    """A thread's generator, put anew to where a number is: making one takes ten times as long."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self.state = self.generator.state  # its buffer is used up
        self.key, self.counter = self.state["state"]["key"], self.state["state"]["counter"]


_philox = _Philox()


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that belongs to this place in this sequence."""
    here = _philox
    here.key[0], here.key[1], here.counter[0] = seed, choice, position
    here.generator.state = here.state
    return float((here.generator.random_raw() >> 11) * 2.0**-53)


def sample(
    row: NDArray[np.float32],
    params: SamplingParams,
    draw: float,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    masked: Sequence[int] | NDArray[np.int64] = (),
    allowed: NDArray[np.int64] | None = None,
) -> Sampled:
    """Choose from `row` [V]. `draw` is the position's number in [0, 1); `masked` ids cannot be chosen, or none but
    the `allowed` (ascending), which overrules `masked`.

    Greedy (temperature 0) takes the largest logit, the lowest id among equals.
    """
    if allowed is None:
        return _choose(_adjusted(row, params, prompt, output, masked), params, draw)
    rest = _adjusted(row, params, prompt, output, ())[allowed] if params.adjusts_logits else row[allowed]
    found = _choose(rest.astype(np.float64), params, draw)
    top = tuple((int(allowed[i]), logprob) for i, logprob in found.top)
    return Sampled(int(allowed[found.id]), found.logprob, top)


def _choose(logits: Logits, params: SamplingParams, draw: float) -> Sampled:
    """Choose from logits that penalties and masks were applied to."""
    chosen = int(np.argmax(logits)) if params.temperature == 0.0 else _draw(logits, params, draw)
    return logprobs_of(logits, chosen, params.top_logprobs) if params.logprobs else Sampled(chosen)


def logprobs_of(row: NDArray[np.floating[Any]], token: int, top: int) -> Sampled:
    """A given token with its log-probability under `row` [V], and the `top` likeliest, lower ids first among equals."""
    shifted = row.astype(np.float64) - float(row.max())
    logprobs = shifted - math.log(np.exp(shifted).sum())
    best = np.lexsort((np.arange(len(logprobs)), -logprobs))[:top] if top else ()
    return Sampled(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


def _adjusted(
    row: NDArray[np.float32],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    masked: Sequence[int] | NDArray[np.int64],
) -> Logits:
    logits = row.astype(np.float64)
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.fromiter((*prompt, *output), dtype=np.int64))
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        ids, counts = np.unique(np.asarray(output, dtype=np.int64), return_counts=True)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if len(masked):
        logits[np.asarray(masked, dtype=np.int64)] = -np.inf
    return logits


def _draw(logits: Logits, params: SamplingParams, draw: float) -> int:
    """Invert the cumulative distribution over the kept tokens, in id order."""
    scaled = (logits - logits.max()) / params.temperature
    weights = np.exp(scaled)
    kept = weights > 0.0
    if params.min_p > 0.0:
        kept &= weights >= params.min_p  # the likeliest has weight 1
    if params.top_k and params.top_k < len(weights):
        kept &= _top(weights, params.top_k)
    if params.top_p < 1.0:
        kept &= _nucleus(np.where(kept, weights, 0.0), params.top_p)
    ids = np.flatnonzero(kept)
    cumulative = np.cumsum(weights[ids])
    place = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def _top(weights: Logits, count: int) -> NDArray[np.bool_]:
    """The `count` largest, lower ids first among equals."""
    edge = np.partition(weights, -count)[-count]
    kept: NDArray[np.bool_] = weights > edge
    ties = np.flatnonzero(weights == edge)[: count - int(kept.sum())]
    kept[ties] = True
    return kept


def _nucleus(weights: Logits, top_p: float) -> NDArray[np.bool_]:
    """The smallest set of likeliest tokens whose share reaches `top_p`."""
    share = weights / weights.sum()
    # Everything below this together weighs less than 1 - top_p, so it cannot be in the nucleus: sort only the rest.
    candidates = np.flatnonzero(share >= (1.0 - top_p) / (2 * len(share)))
    order = candidates[np.lexsort((candidates, -share[candidates]))]
    count = int(np.searchsorted(np.cumsum(share[order]), top_p, side="left")) + 1
    kept = np.zeros(len(weights), dtype=np.bool_)
    kept[order[:count]] = True
    return kept

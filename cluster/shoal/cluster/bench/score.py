"""From outcomes to figures: percentiles, throughput, goodput. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.cluster.bench.outcome import Outcome

PERCENTILES = (50, 90, 95, 99)
_OWN_GAP = 99  # of a request's own gaps: so many percent of them must keep the ITL objective


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the ascending `values` lie, between two of them in proportion (numpy's
    "linear").

    >>> percentile([1.0, 2.0, 4.0], 75)
    3.0
    """
    place = (len(values) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Spread:
    """How some durations lie, in seconds."""

    count: int
    mean: float
    percentiles: dict[int, float]
    largest: float


def spread(values: Iterable[float]) -> Spread | None:
    """None of nothing."""
    ascending = sorted(values)
    if not ascending:
        return None
    mean = math.fsum(ascending) / len(ascending)
    return Spread(len(ascending), mean, {p: percentile(ascending, p) for p in PERCENTILES}, ascending[-1])


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request must keep to be good: seconds to the first token, and between tokens in 99 % of its own gaps."""

    ttft: float | None = None
    itl: float | None = None

    def kept(self, outcome: Outcome) -> bool:
        """Whether the request was answered, and fast enough."""
        if outcome.code != "OK" or outcome.ttft is None:
            return False
        if self.ttft is not None and outcome.ttft > self.ttft:
            return False
        gaps = sorted(outcome.gaps)
        return self.itl is None or not gaps or percentile(gaps, _OWN_GAP) <= self.itl


@dataclass(frozen=True, slots=True)
class Figures:
    """A whole run. `seconds` is from the first request's being due to the last one's end; rates are over all of it."""

    requests: int
    errors: dict[str, int]
    """Failed requests by status."""
    messages: dict[str, str]
    """What one of each said."""
    seconds: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    good: int
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    late: Spread | None
    """How much later than due requests were sent: large where this client, not the server, was too slow."""

    @property
    def answered(self) -> int:
        return self.requests - sum(self.errors.values())

    def per_second(self, count: float) -> float:
        """`count` over the run."""
        return count / self.seconds if self.seconds > 0 else 0.0


def figures(outcomes: Sequence[Outcome], objective: Objective) -> Figures:
    """Latencies are of answered requests alone; tokens of failed ones are not counted."""
    answered = [o for o in outcomes if o.code == "OK"]
    failed = [o for o in outcomes if o.code != "OK"]
    begin = min((o.due for o in outcomes), default=0.0)
    end = max((o.ended for o in outcomes), default=0.0)
    return Figures(
        requests=len(outcomes),
        errors=dict(sorted(Counter(o.code for o in failed).items())),
        messages={o.code: o.message for o in failed},
        seconds=end - begin,
        input_tokens=sum(o.input_tokens for o in answered),
        cached_tokens=sum(o.cached_tokens for o in answered),
        output_tokens=sum(o.output_tokens for o in answered),
        good=sum(objective.kept(o) for o in outcomes),
        ttft=spread(o.ttft for o in answered if o.ttft is not None),
        itl=spread(gap for o in answered for gap in o.gaps),
        tpot=spread(o.tpot for o in answered if o.tpot is not None),
        e2e=spread(o.ended - o.due for o in answered),
        late=spread(o.sent - o.due for o in outcomes),
    )

"""`shoal.cluster.bench.score`, `outcome` and `record`: figures from hand-made outcomes; percentiles against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.bench.outcome import Outcome
from shoal.cluster.bench.record import rows_of
from shoal.cluster.bench.score import PERCENTILES, Objective, figures, percentile, spread

times = st.floats(0, 1e6, allow_nan=False)


@given(values=st.lists(times, min_size=1, max_size=200), percent=st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    """Linear between neighbours, the ends included."""
    assert float(np.percentile(values, percent)) == pytest.approx(percentile(sorted(values), percent), rel=1e-9)


@given(values=st.lists(times, min_size=1, max_size=50))
def test_a_spread_is_ordered(values: list[float]) -> None:
    """Percentiles grow, and none passes the largest; mean and largest are numpy's."""
    found = spread(values)
    assert found is not None
    ascending = [found.percentiles[p] for p in PERCENTILES]
    assert ascending == sorted(ascending)
    assert ascending[-1] <= found.largest == max(values)
    assert float(np.mean(values)) == pytest.approx(found.mean)
    assert spread([]) is None


def outcome(arrivals: list[tuple[float, int]], due: float = 0.0, **more: object) -> Outcome:
    """A request that was sent a tenth late and ended with its last token."""
    made = Outcome(0, 0, due, due + 0.1, arrivals, ended=arrivals[-1][0] if arrivals else due + 0.2, input_tokens=10)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_tokens_of_one_message_came_together() -> None:
    """Gaps are between arrivals as they were; their sum is what the mean time per token says."""
    one = outcome([(1.0, 1), (1.5, 2), (2.5, 1)])
    assert one.ttft == 1.0
    assert one.gaps == [0.5, 0.0, 1.0]
    assert one.tpot == pytest.approx(sum(one.gaps) / 3)
    assert outcome([(1.0, 1)]).tpot is None
    assert outcome([]).ttft is None


@given(arrivals=st.lists(st.tuples(times, st.integers(1, 4)), min_size=1, max_size=30))
def test_gaps_add_up(arrivals: list[tuple[float, int]]) -> None:
    """One gap less than tokens, and together the time from the first to the last."""
    one = outcome(sorted(arrivals))
    assert len(one.gaps) == one.output_tokens - 1
    assert sum(one.gaps) == pytest.approx(one.arrivals[-1][0] - one.arrivals[0][0])


def test_rates_are_over_the_whole_run() -> None:
    """From the first request's due time to the last one's end; failed requests count as requests, not as tokens."""
    outcomes = [
        outcome([(1.0, 1), (2.0, 3)], cached_tokens=5),
        outcome([(4.0, 2)], due=1.0),
        outcome([], due=2.0, code="RESOURCE_EXHAUSTED", message="full", input_tokens=0),
        outcome([(3.0, 1)], due=2.0, code="UNAVAILABLE", message="gone"),
    ]
    found = figures(outcomes, Objective())
    assert (found.requests, found.answered) == (4, 2)
    assert {"RESOURCE_EXHAUSTED": 1, "UNAVAILABLE": 1} == found.errors
    assert found.seconds == 4.0
    assert found.per_second(found.output_tokens) == 1.5
    assert (found.input_tokens, found.cached_tokens) == (20, 5)
    assert found.late is not None
    assert found.late.largest == pytest.approx(0.1)
    assert found.ttft is not None
    assert found.ttft.largest == 3.0


def test_goodput_counts_who_kept_both_objectives() -> None:
    """Late firsts, slow gaps and failures are not good; one slow gap in two hundred is forgiven, three are not."""
    fast = [(0.1, 1), *((0.1 + 0.01 * i, 1) for i in range(1, 200))]
    stall = [(time + (1.0 if i > 100 else 0.0), count) for i, (time, count) in enumerate(fast)]
    stalls = [(time + i // 50, count) for i, (time, count) in enumerate(fast)]
    outcomes = [
        outcome(fast), outcome(stall), outcome(stalls), outcome([(0.9, 1)]), outcome(fast, code="CANCELLED"),
    ]  # fmt: skip
    both, first, neither = (figures(outcomes, o) for o in (Objective(0.5, 0.02), Objective(ttft=0.5), Objective()))
    assert (both.good, first.good, neither.good) == (2, 3, 4)
    rows = {row.case: row for row in rows_of(both, Objective(0.5, 0.02))}
    assert rows["goodput"].value == pytest.approx(both.per_second(2), rel=1e-5)
    assert rows["requests within the objectives"].value == 0.4
    assert rows["time to first token, p99"].goal == 500
    assert rows["time to first token, p99"].met is False
    assert "goodput" not in {row.case for row in rows_of(neither, Objective())}


def test_a_run_without_answers_has_no_latencies() -> None:
    """And still says how many failed."""
    rows = {row.case: row.value for row in rows_of(figures([outcome([], code="INTERNAL")], Objective()), Objective())}
    assert rows["requests failed"] == 1
    assert not any("token" in case and "p50" in case for case in rows)
    assert figures([], Objective()).seconds == 0

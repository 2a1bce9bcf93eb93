"""When groups come and go by themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.autoscale import AutoscalePolicy, Measured, Memory, decide
from shoal.wire.settings import SettingError

CALM = Measured(queue_seconds=0.0, kv_used=0.1, first_token_seconds=0.1)
PLENTY = Measured(queue_seconds=0.05, kv_used=0.5, first_token_seconds=1.2)
SHORT = Measured(queue_seconds=1.0, kv_used=0.5, first_token_seconds=1.0)


def play(policy: AutoscalePolicy, groups: int, course: list[tuple[Measured, int]]) -> list[int]:
    """Groups after each second of a course of (what is measured, seconds)."""
    memory, now, seen = Memory(), 0.0, []
    for measured, seconds in course:
        for _ in range(seconds):
            decision = decide(policy, memory, groups, measured, now)
            assert bool(decision.why) == (decision.groups != groups), "a change has a reason, and nothing else has"
            groups, memory = decision.groups, decision.memory
            seen.append(groups)
            now += 1.0
    return seen


def test_a_missed_target_brings_a_group_after_a_while() -> None:
    """Not at the first sign; then by as much as the worst measure asks for, and not again at once."""
    seen = play(AutoscalePolicy(most=8, up_after=10, rest=30), 1, [(SHORT, 60)])
    assert ([1] * 10, 2) == (seen[:10], seen[10])
    assert [2] * 30 == seen[10:40]
    assert seen[-1] == 4


def test_a_short_peak_changes_nothing() -> None:
    """The patience begins anew when the target is met in between."""
    assert {1} == set(play(AutoscalePolicy(up_after=10), 1, [(SHORT, 9), (CALM, 1)] * 10))


def test_groups_go_one_by_one_when_fewer_would_do() -> None:
    """Down to the least, with the patience between two."""
    seen = play(AutoscalePolicy(least=1, down_after=20, rest=5), 3, [(CALM, 100)])
    assert [3] * 20 == seen[:20]
    assert (2, 1) == (seen[20], seen[-1])


def test_a_group_that_is_needed_stays() -> None:
    """Without it the others would miss the target's slack: the number does not swing."""
    assert {2} == set(play(AutoscalePolicy(), 2, [(PLENTY, 400)]))


@given(st.lists(st.tuples(st.sampled_from([CALM, PLENTY, SHORT]), st.integers(1, 60)), max_size=20), st.integers(0, 9))
def test_bounds_and_rests_are_kept(course: list[tuple[Measured, int]], groups: int) -> None:
    """Whatever is measured: within the bounds, and never two changes within the rest."""
    policy = AutoscalePolicy(least=2, most=5, up_after=3, down_after=7, rest=10)
    seen = play(policy, groups, course)
    assert all(2 <= number <= 5 for number in seen)
    changes = [i for i in range(1, len(seen)) if seen[i] != seen[i - 1]]
    assert all(b - a >= 10 for a, b in pairwise(changes))


def test_an_idle_workers_own_time_to_first_token_keeps_no_group() -> None:
    """It would come no sooner with more: only what goes with the load is expected to grow."""
    idle = Measured(queue_seconds=0.0, kv_used=0.1, first_token_seconds=1.3)
    assert 1 == play(AutoscalePolicy(down_after=20, rest=5), 3, [(idle, 100)])[-1]


@pytest.mark.parametrize(
    ("key", "value"), [("least", 0), ("most", 0), ("slack", 1.0), ("rest", -1.0), ("kv_used", 0), ("queue_seconds", 0)]
)
def test_a_policy_that_cannot_be_is_refused(key: str, value: float) -> None:
    """By the name of its setting."""
    with pytest.raises(SettingError, match=f"^autoscale.{key} must be"):
        AutoscalePolicy(**{key: value})  # type: ignore[arg-type]  # wrong on purpose

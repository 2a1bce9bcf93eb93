"""The choice of worker."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shoal.router.fleet.policy import CROWDED, Load, choose

_loads = st.builds(
    Load,
    address=st.text(min_size=1, max_size=3),
    reported=st.integers(0, 9),
    own_at_report=st.integers(0, 9),
    own=st.integers(0, 9),
    kv_used=st.sampled_from([0.0, 0.5, 1.0]),
    backlog_reported=st.integers(0, 2000),
    backlog_own_at_report=st.integers(0, 2000),
    backlog_own=st.integers(0, 2000),
)


@given(st.lists(_loads, min_size=1, max_size=6), st.integers(0, 100))
def test_nobody_better_is_passed_over(loads: list[Load], turn: int) -> None:
    """The chosen worker is least behind, then least loaded, among those with room, or among all when none has."""
    chosen = choose(loads, turn)
    roomy = [load for load in loads if load.kv_used < CROWDED] or loads

    assert chosen in roomy
    assert chosen is not None
    assert (chosen.steps_behind, chosen.sequences) == min((load.steps_behind, load.sequences) for load in roomy)


def test_equals_take_turns() -> None:
    """Without any difference the workers are used evenly."""
    loads = [Load("a"), Load("b"), Load("c")]
    chosen = [load.address for turn in range(6) if (load := choose(loads, turn)) is not None]

    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_own_sequences_are_not_counted_twice() -> None:
    """What a worker reported of us is replaced by what we know now."""
    assert Load("a", reported=5, own_at_report=3, own=1).sequences == 3


def test_what_a_dead_worker_leaves_is_shared_out() -> None:
    """Sixteen long sequences move while one worker left has many and the other none: both compute their half."""
    loads = {"busy": Load("busy", own=16), "new": Load("new")}
    for turn in range(16):
        chosen = choose(list(loads.values()), turn)
        assert chosen is not None
        loads[chosen.address] = replace(chosen, own=chosen.own + 1, backlog_own=chosen.backlog_own + 300)

    assert abs(loads["busy"].backlog_own - loads["new"].backlog_own) <= 2 * 300

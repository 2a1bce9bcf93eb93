"""The life of a group, as pure transitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster import lifecycle as life
from shoal.cluster.lifecycle import GroupState, Phase, step
from shoal.workers.experts.group import EpochReport, WorkerFacts

DEADLINE = 100.0


def facts(rank: int, **changes: object) -> WorkerFacts:
    """What a healthy rank says of itself."""
    good = WorkerFacts(
        worker_id=f"g0-{rank}", address=f"127.0.0.1:{5000 + rank}", pid=rank, node_ip="127.0.0.1", num_layers=2,
        num_experts=8, numerics_id="n", kernel_path="cpu", tokenizer_hash="t", bytes_read=1, seconds=0.1,
    )  # fmt: skip
    return replace(good, **changes)  # type: ignore[arg-type]  # tests pass fields of the right type


def report(rank: int) -> EpochReport:
    """What a rank says once it joined."""
    return EpochReport(rank, 4, 4, 1, 0.1, 0.1)


def new(ep_size: int = 2) -> GroupState:
    """A group that is wanted."""
    return GroupState("g0", ep_size, 7, "127.0.0.1", 29500, DEADLINE)


def after(state: GroupState, *events: life.Event, now: float = 0.0) -> tuple[GroupState, tuple[life.Action, ...]]:
    """The state after these events, and the actions of the last one."""
    actions: tuple[life.Action, ...] = ()
    for event in events:
        state, actions = step(state, event, now)
    return state, actions


TO_JOINING = (life.Begun(), life.Placed(), life.Prepared(1, facts(1)), life.Prepared(0, facts(0)))
TO_READY = (*TO_JOINING, life.Joined(0, report(0)), life.Joined(1, report(1)))


def test_a_group_is_announced_absent_before_it_takes_places() -> None:
    """A record of an earlier life must not send requests to addresses where nobody lives any more."""
    _, actions = after(new(), life.Begun())
    publish, reserve = actions
    assert isinstance(publish, life.Publish)
    assert (publish.entry.epoch, publish.entry.ready, publish.entry.workers) == (7, False, ())
    assert life.Reserve(2) == reserve


def test_a_group_joins_once_all_ranks_are_prepared() -> None:
    """The spec names every rank in order, the store and an even placement, whatever order they came in."""
    state, actions = after(new(), *TO_JOINING)
    assert state.phase is Phase.JOINING
    (join,) = actions
    assert isinstance(join, life.Join)
    assert [(m.rank, m.worker_id) for m in join.spec.members] == [(0, "g0-0"), (1, "g0-1")]
    assert (join.spec.epoch, join.spec.store_host, join.spec.store_port) == (7, "127.0.0.1", 29500)
    assert join.spec.placement.experts_of(layer=1, rank=0) == (0, 1, 2, 3)


def test_a_group_is_ready_once_all_ranks_joined() -> None:
    """Only then do routers learn of it, with every rank's address."""
    state, actions = after(new(), *TO_READY)
    assert state.phase is Phase.READY
    (publish,) = actions
    assert isinstance(publish, life.Publish)
    assert publish.entry.ready
    assert [worker.address for worker in publish.entry.workers] == ["127.0.0.1:5000", "127.0.0.1:5001"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"numerics_id": "m"}, "ranks 0 and 1 differ in numerics_id: n and m"),
        ({"tokenizer_hash": "u"}, "ranks 0 and 1 differ in tokenizer_hash: t and u"),
        ({"num_experts": 9}, "ranks 0 and 1 differ in num_experts: 8 and 9"),
    ],
)
def test_ranks_that_disagree_never_form_a_group(other: dict[str, object], expected: str) -> None:
    """Another checkpoint, tokenizer or kernel on one node fails the start and gives the places back."""
    start = (life.Begun(), life.Placed(), life.Prepared(0, facts(0)), life.Prepared(1, facts(1, **other)))
    state, actions = after(new(), *start)
    assert (Phase.FAILED, expected) == (state.phase, state.reason)
    assert (life.Release(0.0),) == actions


def test_more_ranks_than_experts_never_form_a_group() -> None:
    """Each rank needs an expert."""
    state, _ = after(
        new(), life.Begun(), life.Placed(), *(life.Prepared(rank, facts(rank, num_experts=1)) for rank in (0, 1))
    )
    assert state.reason == "2 ranks cannot share 1 experts: lower cluster.ep_size"


@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_failure_while_starting_gives_the_places_back(done: int) -> None:
    """Whatever breaks before the group is ready, nothing stays occupied and the reason is kept."""
    state, actions = after(new(), *TO_READY[:done], life.Broken(1, "no space"))
    assert (state.phase, state.reason) == (Phase.FAILED, "rank 1: no space")
    assert (life.Release(0.0),) == actions


def test_a_start_that_takes_too_long_fails_and_says_whom_it_waited_for() -> None:
    """The deadline is the controller's clock, told by a tick."""
    state, _ = after(new(), life.Begun(), life.Placed(), life.Prepared(0, facts(0)))
    assert state == after(state, life.Tick(), now=DEADLINE - 1)[0]
    state, actions = after(state, life.Tick(), now=DEADLINE)
    assert (state.phase, state.reason) == (Phase.FAILED, "not ready in time, still preparing (waiting for rank 1)")
    assert (life.Release(0.0),) == actions


def test_a_death_while_serving_takes_the_group_from_the_routers_only() -> None:
    """Survivors keep their weights and places: they are what a repair begins with."""
    state, actions = after(new(), *TO_READY, life.Broken(0, "its process died"))
    assert (state.phase, state.reason) == (Phase.FAILED, "rank 0: its process died")
    (publish,) = actions
    assert isinstance(publish, life.Publish)
    assert not publish.entry.ready


@pytest.mark.parametrize("done", range(len(TO_READY) + 1))
def test_a_group_stops_from_anywhere(done: int) -> None:
    """Routers are told first, then the processes are stopped; once they are gone the group is stopped."""
    state, actions = after(new(), *TO_READY[:done], life.StopAsked(3.0))
    assert state.phase is Phase.STOPPING
    publish, release = actions
    assert isinstance(publish, life.Publish)
    assert (publish.entry.ready, publish.entry.workers) == (False, ())
    assert life.Release(3.0) == release
    assert after(state, life.Released())[0].phase is Phase.STOPPED


ranks = st.integers(0, 2)
events = st.one_of(
    st.just(life.Begun()),
    st.just(life.Placed()),
    ranks.map(lambda rank: life.Prepared(rank, facts(rank))),
    ranks.map(lambda rank: life.Joined(rank, report(rank))),
    st.builds(life.Broken, st.none() | ranks, st.just("why")),
    st.just(life.Tick()),
    st.just(life.StopAsked(0.0)),
    st.just(life.Released()),
)


@given(st.lists(st.tuples(events, st.floats(0, 2 * DEADLINE)), max_size=40))
def test_no_order_of_events_breaks_a_group(history: list[tuple[life.Event, float]]) -> None:
    """Whatever comes, in whatever order: ready means that all joined, a stop is final, readiness is always told."""
    state = new(ep_size=3)
    told_ready = False
    for event, now in history:
        before = state
        state, actions = step(state, event, now)
        for action in actions:
            if isinstance(action, life.Publish):
                told_ready = action.entry.ready
        assert told_ready == (state.phase is Phase.READY)
        if state.phase is Phase.READY:
            assert None not in state.reports
            assert None not in state.facts
        if before.phase in (Phase.STOPPING, Phase.STOPPED):
            assert state.phase in (Phase.STOPPING, Phase.STOPPED)
        if state.phase is Phase.FAILED:
            assert state.reason

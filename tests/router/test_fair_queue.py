"""Who is next."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.router.fair_queue import FairQueue


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50)), max_size=60))
def test_nothing_is_lost_and_each_flow_keeps_its_order(pushes: list[tuple[str, int]]) -> None:
    """Whatever comes goes out once, one flow's items in the order they came."""
    queue = FairQueue[tuple[str, int]]()
    for number, (flow, cost) in enumerate(pushes):
        queue.push(flow, (flow, number), float(cost))
    out = [queue.pop() for _ in range(len(queue))]

    assert sorted(out, key=lambda item: item[1]) == [(flow, n) for n, (flow, _) in enumerate(pushes)]
    for flow in "abcd":
        numbers = [n for f, n in out if f == flow]
        assert numbers == sorted(numbers)


@settings(max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.25, 1.0, 4.0]), min_size=2),
    st.lists(st.integers(1, 9), min_size=200, max_size=200),
)
def test_backlogged_flows_get_what_their_weights_say(weights: dict[str, float], costs: list[int]) -> None:
    """While all of them wait, what two flows were served, by weight, never differs by more than two requests each."""
    queue, rest = FairQueue[tuple[str, int]](), {flow: iter(costs) for flow in weights}
    for flow in weights:
        for _ in range(40):
            cost = next(rest[flow])
            queue.push(flow, (flow, cost), float(cost), weights[flow])
    served = Counter[str]()
    while all(queue.waiting(flow) for flow in weights):
        flow, cost = queue.pop()
        served[flow] += cost
        shares = {f: served[f] / weights[f] for f in weights}
        bound = max(2 * max(costs) / weight for weight in weights.values())
        assert max(shares.values()) - min(shares.values()) <= bound


def test_who_floods_while_there_is_room_is_behind_when_there_is_none() -> None:
    """A newcomer is next but one at the latest, however many wait and however big they are."""
    queue = FairQueue[str]()
    for number in range(100):
        queue.push("noisy", f"n{number}", 20.0)
    for _ in range(10):
        queue.pop()
    queue.push("quiet", "q")

    assert "q" in [queue.pop(), queue.pop()]


def test_taking_back_is_as_if_it_had_not_come() -> None:
    """Neither the last of a flow nor one in the middle leaves a trace but its cost."""
    queue = FairQueue[str]()
    first, second, third = "first", "second", "third"
    for item in (first, second, third):
        queue.push("a", item)
    assert queue.drop_last("a") == third
    assert queue.remove("a", first)
    assert not queue.remove("a", first)
    assert not queue.remove("nobody", first)
    assert (queue.pop(), len(queue)) == (second, 0)

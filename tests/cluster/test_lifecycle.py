"""The life of a group, as pure transitions, in a world that does what it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.cluster import group_actions as do
from shoal.cluster import group_state as gs
from shoal.cluster.group_state import Mood, Obstacle, Phase, Stage
from shoal.cluster.lifecycle import disagreement, step
from shoal.cluster.placement import even_placement
from tests.cluster.world import World, facts, new, ready


def test_a_group_starts_with_one_epoch() -> None:
    """All workers are hired at once; once all are prepared they enter one epoch; then, and only then, it is ready."""
    world = World(new(2), slow=True)
    world.tell(gs.Begun())
    assert [do.Hire("g0-0"), do.Hire("g0-1")] == [a for a in world.todo if isinstance(a, do.Hire)]
    world.slow = False
    while world.todo:
        world.act()
    assert [True] == [entry.ready for entry in world.entries][-1:]
    assert not any(entry.ready for entry in world.entries[:-1])
    assert [(7, ["g0-0", "g0-1"])] == [(s.epoch, [m.worker_id for m in s.members]) for s in world.epochs]
    assert [w.address for w in world.entries[-1].workers] == ["127.0.0.1:5000", "127.0.0.1:5001"]


def test_survivors_go_on_first_and_a_replacement_comes_later() -> None:
    """A death is an epoch of the survivors at once, and another when somebody new is prepared."""
    world = ready(3)
    world.slow = True
    world.die("g0-1")
    enter = next(a for a in world.todo if isinstance(a, do.Enter))
    assert (["g0-0", "g0-2"], False) == ([m.worker_id for m in enter.spec.members], enter.together)
    assert do.Hire("g0-3") in world.todo
    world.slow = False
    while world.todo:
        world.act()
    assert [3, 2, 3] == [spec.size for spec in world.epochs]
    assert ["g0-0", "g0-2", "g0-3"] == world.members
    assert all(e.ready for e in world.entries if e.epoch > 7), "routers go on sending"


def test_a_replacement_starts_once_the_others_had_a_breath() -> None:
    """Its start would take their processors while clients wait: they go on first, then it is hired by itself."""
    world = ready(3, breath=1.0)
    world.die("g0-1")
    assert (Phase.READY, ["g0-0", "g0-2"]) == (world.state.phase, world.members)
    assert "g0-3" not in world.alive
    world.pass_time(1)
    assert ["g0-0", "g0-2", "g0-3"] == world.members


def test_other_groups_have_their_breath_too() -> None:
    """The only member dies; while other groups serve, its replacement leaves them the machine, else it starts now."""
    for elsewhere, members in ((True, []), (False, ["g0-1"])):
        world = ready(1, breath=1.0)
        world.tell(gs.Lost("g0-0", "killed", elsewhere))
        assert members == world.members
        world.pass_time(2.0)
        assert (Phase.READY, ["g0-1"]) == (world.state.phase, world.members)


def test_nobody_waits_for_a_breath_that_nobody_takes() -> None:
    """All died, or those left cannot hold all experts: the replacement is what everybody waits for."""
    world = ready(2, breath=60.0)
    world.die("g0-0")
    world.die("g0-1")
    assert ["g0-2", "g0-3"] == world.members
    world = ready(2, breath=60.0)
    world.slow = True
    world.die("g0-1")
    world.todo.clear()
    world.tell(gs.Refused("g0-0", world.state.epoch, Obstacle.NO_ROOM, "12 GiB more, 1 GiB free"))
    assert do.Hire("g0-2") in world.todo


def test_a_spare_takes_a_dead_ones_place_in_the_same_epoch() -> None:
    """Prepared beforehand, it costs one epoch; another spare is hired for it."""
    world = ready(2, spares=1)
    world.die("g0-0")
    assert [2, 2] == [spec.size for spec in world.epochs]
    assert ["g0-1", "g0-2"] == world.members
    assert [Stage.MEMBER, Stage.MEMBER, Stage.SPARE] == [h.stage for h in world.state.workers]


def test_when_all_die_the_group_begins_again() -> None:
    """Nobody is left to keep anything; it is not ready until new ones serve."""
    world = ready(2)
    world.slow = True
    world.die("g0-0")
    world.die("g0-1")
    world.slow = False
    while world.todo:
        world.act()
    world.pass_time(5)
    assert (Phase.READY, 2) == (world.state.phase, len(world.members))


def test_a_death_while_an_epoch_is_entered_makes_another() -> None:
    """The epoch that cannot be is dropped, its late answers too."""
    world = ready(3)
    world.slow = True
    world.die("g0-0")
    stale = next(a for a in world.todo if isinstance(a, do.Enter)).spec
    world.die("g0-1")
    world.slow = False
    while world.todo:
        world.act()
    world.tell(gs.Refused("g0-2", stale.epoch, Obstacle.OTHER, "late"))
    world.pass_time(5)
    assert (Phase.READY, 3) == (world.state.phase, len(world.members))


@pytest.mark.parametrize("path", [(1, 2, 4, 3, 2, 1), (4, 1, 8, 2)])
def test_scaling_takes_one_epoch_each(path: tuple[int, ...]) -> None:
    """Up: once all newcomers are prepared. Down: once those who leave are empty. Who stays keeps its rank."""
    world = ready(path[0])
    for number, size in enumerate(path[1:], start=2):
        before = world.members
        world.tell(gs.Scaled(size))
        world.pass_time(1)
        assert (Phase.READY, size, number) == (world.state.phase, len(world.members), len(world.epochs))
        assert before[:size] == world.members[: len(before)]


def test_who_leaves_is_announced_and_waited_for() -> None:
    """Routers hear that it drains; it goes when it is empty, or when its time is up."""
    world = ready(2)
    world.busy.add("g0-1")
    world.tell(gs.Scaled(1))
    assert [False, True] == [w.draining for w in world.entries[-1].workers]
    world.pass_time(2)
    assert ["g0-0", "g0-1"] == world.members
    world.pass_time(4)
    assert (["g0-0"], ["g0-1"]) == (world.members, world.gone)


def test_a_drained_worker_is_replaced() -> None:
    """Another comes first, then both changes are one epoch."""
    world = ready(2)
    world.busy.add("g0-0")
    world.tell(gs.DrainAsked("g0-0"))
    world.tell(gs.Word("g0-0", 7, Mood.SERVING, busy=False, draining=True))
    assert ["g0-1", "g0-2"] == world.members
    assert "g0-0" in world.gone


def test_a_worker_that_was_told_to_end_is_let_go() -> None:
    """SIGTERM at the worker: it says so, and is left out of the next epoch."""
    world = ready(2)
    world.tell(gs.Word("g0-0", 7, Mood.LEAVING, busy=True))
    world.pass_time(1)
    assert "g0-0" not in world.members
    assert len(world.members) == 2


def test_a_group_that_rests_for_no_reason_gets_a_new_epoch() -> None:
    """An exchange broke, everybody lives: the same members meet again."""
    world = ready(2)
    world.tell(gs.Word("g0-1", 7, Mood.RESTING, busy=True, why="a damaged message"))
    assert [["g0-0", "g0-1"]] * 2 == [[m.worker_id for m in s.members] for s in world.epochs]


def test_somebody_whom_the_others_cannot_reach_is_given_up() -> None:
    """After some epochs that could not be entered, one is dropped, and so on until the rest succeed."""
    world = ready(3)
    world.slow = True
    world.tell(gs.Word("g0-0", 7, Mood.RESTING, busy=True))
    for _ in range(3):
        epoch = world.state.epoch
        world.tell(gs.Refused("g0-0", epoch, Obstacle.OTHER, "rank 2 did not come"))
    assert world.state.hand("g0-2") is None
    assert do.Kill("g0-2") in world.todo


def test_survivors_without_room_wait_for_a_replacement() -> None:
    """They say so, are not ready, and go on as soon as there are enough."""
    world = ready(2)
    world.slow = True
    world.die("g0-1")
    hire = next(a for a in world.todo if isinstance(a, do.Hire))
    world.todo.clear()
    world.tell(gs.Refused("g0-0", world.state.epoch, Obstacle.NO_ROOM, "12 GiB more, 1 GiB free"))
    assert (Phase.WAITING, "g0-0: 12 GiB more, 1 GiB free") == (world.state.phase, world.state.reason)
    world.slow = False
    world.alive[hire.name] = None
    world.tell(gs.Prepared(hire.name, facts(hire.name)))
    assert (Phase.READY, 2) == (world.state.phase, len(world.members))


def test_a_group_that_cannot_shrink_stays_as_it_is() -> None:
    """The others have no room for the experts of who should leave: the old epoch goes on, nobody leaves."""
    world = ready(3)
    world.slow = True
    world.tell(gs.Scaled(1), *(gs.Word(f"g0-{i}", 7, Mood.SERVING, busy=False, draining=True) for i in (1, 2)))
    world.todo.clear()
    world.tell(gs.Refused("g0-0", world.state.epoch, Obstacle.NO_ROOM, "no room"))
    assert (Phase.READY, 3) == (world.state.phase, world.state.ep_size)
    assert [do.Drain("g0-1", False), do.Drain("g0-2", False)] == [a for a in world.todo if isinstance(a, do.Drain)]


def test_wrong_logits_take_the_group_from_the_routers() -> None:
    """Nobody is trusted any more: all are killed and begin again from the checkpoint, not for ever."""
    world = ready(2)
    world.tell(gs.Word("g0-1", 7, Mood.UNFIT, busy=True, why="other logits"))
    assert ["g0-0", "g0-1"] == sorted(world.gone)
    assert False in [entry.ready for entry in world.entries[2:]]
    assert (Phase.READY, ["g0-2", "g0-3"]) == (world.state.phase, world.members)
    for _ in range(2):
        world.tell(gs.Word(world.members[0], world.state.epoch, Mood.UNFIT, busy=True, why="other logits"))
    assert world.state.phase is Phase.FAILED
    assert "other logits" in world.state.reason


def test_a_first_start_that_computes_wrongly_fails() -> None:
    """A corrupted checkpoint does not become better by trying again."""
    world = World(new(2), slow=True)
    world.tell(gs.Begun(), *(gs.Prepared(f"g0-{i}", facts(f"g0-{i}")) for i in (0, 1)))
    world.tell(gs.Refused("g0-1", 7, Obstacle.UNFIT, "golden logits are missed"))
    assert (Phase.FAILED, "self-test: g0-1: golden logits are missed") == (world.state.phase, world.state.reason)
    assert do.Release(0.0) in world.todo


def test_a_first_start_that_fails_gives_everything_back() -> None:
    """A worker that cannot be started fails the start, with the reason."""
    world = World(new(2), slow=True)
    world.tell(gs.Begun(), gs.Lost("g0-1", "CheckpointError: truncated"))
    assert (Phase.FAILED, "g0-1: CheckpointError: truncated") == (world.state.phase, world.state.reason)
    assert do.Release(0.0) in world.todo


def test_a_start_that_takes_too_long_says_whom_it_waited_for() -> None:
    """The deadline is the controller's clock, told by a tick."""
    world = World(new(2), slow=True)
    world.tell(gs.Begun(), gs.Prepared("g0-0", facts("g0-0")))
    world.now = 100.0
    world.tell(gs.Tick())
    assert (Phase.FAILED, "not ready in time: waiting for g0-1") == (world.state.phase, world.state.reason)


def test_a_replacement_that_cannot_be_had_is_asked_for_again_and_again() -> None:
    """More and more slowly, while the survivors serve."""
    world = ready(2)
    world.slow = True
    world.die("g0-1")
    world.slow = False
    world.todo = [a for a in world.todo if not isinstance(a, do.Hire)]
    while world.todo:
        world.act()
    world.slow = True
    for number in range(2, 5):
        world.tell(gs.Lost(f"g0-{number}", "no place"))
        world.pass_time(20)
    assert (Phase.READY, ["g0-0"]) == (world.state.phase, world.members)
    assert do.Hire("g0-5") in world.todo


def test_a_better_placement_is_an_epoch_of_the_same_members() -> None:
    """For the epoch that it was made for; a late one is dropped."""
    world = ready(2)
    better = even_placement(2, 8, 2)
    world.tell(gs.Balanced(6, better))
    assert len(world.epochs) == 1
    world.tell(gs.Balanced(7, better))
    assert [better, better] == [spec.placement for spec in world.epochs]


def test_a_new_controller_takes_over_what_it_finds() -> None:
    """All members of the newest epoch live: nothing changes, nobody pauses."""
    world = ready(2)
    assert world.state.spec is not None
    found = tuple((facts(name), spec) for name, spec in world.alive.items())
    again = replace(new(2), epoch=3)
    state, actions = step(again, gs.Begun(found, serial=2), 0.0)
    assert (Phase.READY, 7) == (state.phase, state.epoch)
    assert ["Publish"] == [type(action).__name__ for action in actions]


def test_a_new_controller_repairs_what_died_meanwhile() -> None:
    """One of the members is missing: the next epoch is of those who are there."""
    world = ready(2)
    state, actions = step(new(2), gs.Begun(((facts("g0-0"), world.alive["g0-0"]),), serial=2), 0.0)
    enter = next(a for a in actions if isinstance(a, do.Enter))
    assert (8, ["g0-0"], False) == (enter.spec.epoch, [m.worker_id for m in enter.spec.members], enter.together)
    assert do.Hire("g0-2") in actions
    assert state.phase is Phase.CHANGING


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"numerics_id": "m"}, "g0-0 and g0-1 differ in numerics_id: n and m"),
        ({"tokenizer_hash": "u"}, "g0-0 and g0-1 differ in tokenizer_hash: t and u"),
        ({"num_experts": 9}, "g0-0 and g0-1 differ in num_experts: 8 and 9"),
    ],
)
def test_workers_that_disagree_never_form_a_group(other: dict[str, object], expected: str) -> None:
    """Another checkpoint, tokenizer or kernel on one node is found before it serves."""
    assert expected == disagreement((facts("g0-0"), facts("g0-1", **other)), 2)


def test_more_workers_than_experts_never_form_a_group() -> None:
    """Each needs an expert."""
    assert disagreement((facts("g0-0"),), 9) == "9 workers cannot share 8 experts: lower cluster.ep_size"


def test_a_stop_tells_routers_first() -> None:
    """The last record says not ready, without workers; then everything ends, whatever comes late."""
    world = ready(2)
    world.tell(gs.StopAsked(3.0))
    assert (False, ()) == (world.entries[-1].ready, world.entries[-1].workers)
    assert world.state.phase is Phase.STOPPED
    world.tell(gs.Lost("g0-0", "late"), gs.Scaled(4))
    assert world.state.phase is Phase.STOPPED


deeds = st.one_of(
    st.tuples(st.just("die"), st.integers(0, 9)),
    st.tuples(st.just("act"), st.integers(1, 4)),
    st.tuples(st.just("scale"), st.integers(1, 5)),
    st.tuples(st.just("drain"), st.integers(0, 9)),
    st.tuples(st.just("rest"), st.integers(0, 9)),
    st.tuples(st.just("refuse"), st.integers(0, 9)),
    st.tuples(st.just("time"), st.integers(1, 8)),
    st.tuples(st.just("unfit"), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@example(1, 0, 0.0, [("die", 0), ("act", 3), ("refuse", 7)])  # all died, and the first anew cannot read
@given(st.integers(1, 4), st.integers(0, 2), st.sampled_from([0.0, 1.0, 3.0]), st.lists(deeds, max_size=30))
def test_whatever_happens_a_group_comes_back(
    size: int, spares: int, breath: float, history: list[tuple[str, int]]
) -> None:
    """Deaths, delays, scaling, drains and refusals in any order: once they end, the group is as it was asked to be,
    epochs only ever grew, and nobody was left behind."""
    world = ready(size, spares=spares, patience=1000, breath=breath)
    world.slow = True
    for what, number in history:
        living = sorted(world.alive)
        name = living[number % len(living)] if living else ""
        if what == "act":
            for _ in range(min(number, len(world.todo))):
                world.act()
        elif what == "scale":
            world.tell(gs.Scaled(number))
        elif what == "time":
            world.pass_time(number)
        elif what == "unfit":
            world.tell(gs.Word(name, world.state.epoch, Mood.UNFIT, busy=True))
        elif name and what == "die":
            world.die(name)
        elif name and what == "drain":
            world.tell(gs.DrainAsked(name))
        elif name and what == "rest":
            world.tell(gs.Word(name, world.state.epoch, Mood.RESTING, busy=True))
        elif name and what == "refuse":
            obstacle = Obstacle.UNREADABLE if number > 6 else Obstacle.OTHER
            world.tell(gs.Refused(name, world.state.epoch, obstacle, "no"))
    world.slow = False
    while world.todo:
        world.act()
    world.pass_time(200)
    assert (Phase.READY, world.state.ep_size) == (world.state.phase, len(world.members)), world.state.reason
    assert set(world.alive) == {h.name for h in world.state.workers}, "somebody was forgotten"
    epochs = [spec.epoch for spec in world.epochs]
    assert epochs == sorted(set(epochs))
    assert world.entries[-1].ready

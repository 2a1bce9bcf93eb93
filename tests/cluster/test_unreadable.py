"""What a group does while its checkpoint cannot be read: nobody is to blame."""

from __future__ import annotations

from shoal.cluster import group_actions as do
from shoal.cluster import group_state as gs
from shoal.cluster.group_state import Obstacle, Phase
from shoal.cluster.lifecycle import registry_entry
from tests.cluster.world import World, facts, new, ready


def test_a_damaged_checkpoint_kills_nobody_and_hires_nobody_more() -> None:
    """A survivor cannot read what the dead one held: the group is not ready, says which file, and goes on once it can
    be read. The one replacement waits with it."""
    world = ready(3)
    world.slow = True
    world.die("g0-1")
    why = "CheckpointError: /models/x/model-2.safetensors: cannot be read"
    for _ in range(8):
        world.pass_time(60)
        assert world.state.change is not None, "it was not tried again"
        world.tell(gs.Refused("g0-0", world.state.epoch, Obstacle.UNREADABLE, why))
        assert (Phase.WAITING, f"g0-0: {why}") == (world.state.phase, world.state.reason)
        assert not registry_entry(world.state).ready
    assert {"g0-0", "g0-2"} <= set(world.alive)
    assert ["g0-3"] == [a.name for a in world.todo if isinstance(a, do.Hire)]
    world.slow = False
    world.todo = [a for a in world.todo if not isinstance(a, do.Enter)]
    while world.todo:
        world.act()
    world.pass_time(61)
    assert (Phase.READY, 3, "") == (world.state.phase, len(world.members), world.state.reason)


def test_waiting_for_a_file_grows_to_a_minute_and_no_further() -> None:
    """For months, if need be."""
    world = ready(2)
    world.slow = True
    world.die("g0-1")
    waits = []
    for _ in range(1100):
        world.now = max(world.now, world.state.settle_at)
        world.tell(gs.Tick())
        began = world.now
        world.tell(gs.Refused("g0-0", world.state.epoch, Obstacle.UNREADABLE, "cannot be read"))
        waits.append(round(world.state.settle_at - began))
    assert [1, 2, 4, 8, 16, 32, 60, 60] == waits[:8]
    assert {60} == set(waits[8:])


def test_growing_onto_a_damaged_checkpoint_leaves_the_old_epoch_in_force() -> None:
    """Who should join cannot read its experts: the members serve on, and it is tried again later."""
    world = ready(2)
    world.slow = True
    world.tell(gs.Scaled(3))
    while world.state.change is None:
        world.act()
    world.todo.clear()
    world.tell(gs.Refused("g0-2", world.state.epoch, Obstacle.UNREADABLE, "model.safetensors: truncated"))
    assert (Phase.READY, ["g0-0", "g0-1"]) == (world.state.phase, world.members)
    assert (True, "g0-2: model.safetensors: truncated") == (registry_entry(world.state).ready, world.state.reason)
    world.slow = False
    world.pass_time(2)
    assert ["g0-0", "g0-1", "g0-2"] == world.members


def test_a_first_start_on_a_damaged_checkpoint_fails_by_its_name() -> None:
    """Nobody waits for a file that was never readable."""
    world = World(new(1), slow=True)
    world.tell(gs.Begun(), gs.Prepared("g0-0", facts("g0-0")))
    world.tell(gs.Refused("g0-0", 7, Obstacle.UNREADABLE, "model.safetensors: truncated"))
    assert (Phase.FAILED, "g0-0: model.safetensors: truncated") == (world.state.phase, world.state.reason)

"""The controller with a fleet of its own: no Ray, no processes."""

from __future__ import annotations

import asyncio

import pytest

from shoal.cluster import announcer, controller
from shoal.cluster.group_state import Mood
from shoal.workers.experts.group import WorkerFacts
from tests.cluster.bench import Bench


async def test_a_group_comes_up_in_order() -> None:
    """All processes, then everybody reads, then everybody enters, then the announcement; status tells who each is."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        names = ("g0-0", "g0-1")
        assert [f"{what} {name}" for what in ("hire", "stage", "enter") for name in names] == bench.fleet.done
        assert bench.registry.entries[-1].ready
        assert [worker["experts_held"] for worker in bench.group["workers"]] == [4, 4]


async def test_a_worker_that_cannot_start_fails_the_group() -> None:
    """The reason is kept for people, and everything is given back."""
    bench = Bench()
    bench.fleet.broken["hire g0-1"] = "CheckpointError: truncated"
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "failed")
        await bench.until(lambda: "dismiss g0-0" in bench.fleet.done)
        assert bench.group["reason"] == "g0-1: CheckpointError: truncated"


async def test_a_start_that_hangs_ends_at_its_deadline() -> None:
    """Time comes from the clock that the controller was given."""
    bench = Bench(start_timeout=60.0)
    bench.fleet.hold.clear()
    async with bench.running():
        await bench.until(lambda: bench.fleet.done == ["hire g0-0", "hire g0-1"])
        bench.late = 61.0
        await bench.until(lambda: bench.group["phase"] == "failed")
        assert bench.group["reason"] == "not ready in time: waiting for g0-0, g0-1"


async def test_a_death_is_repaired() -> None:
    """The end of its socket is enough: it is made sure of, the survivor goes on, a replacement comes."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        bench.fleet.die("g0-1")
        await bench.until_ready(["g0-0", "g0-2"])
        assert "kill g0-1" in bench.fleet.done
        assert [1, 2] == sorted({len(entry.workers) for entry in bench.registry.entries if entry.ready})
        assert [entry.ready for entry in bench.registry.entries if entry.epoch > 1] == [True] * 2


async def test_a_silent_worker_is_killed_and_replaced() -> None:
    """Its sockets are open, it says nothing: it hangs."""
    bench = Bench(heartbeat_timeout=0.5)
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        bench.fleet.broken["g0-0"] = "hangs"
        await bench.until_ready(["g0-1", "g0-2"])
        assert "kill g0-0" in bench.fleet.done


async def test_a_broken_exchange_is_mended_without_killing_anybody() -> None:
    """Everybody lives: the same members meet again in a new epoch."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        bench.fleet.say("g0-0", Mood.RESTING, why="a damaged message")
        await bench.until(lambda: bench.group["epoch"] == 2 and bench.group["phase"] == "ready")
        assert ["g0-0", "g0-1"] == bench.ranks
        assert not [what for what in bench.fleet.done if what.startswith("kill")]


async def test_scaling_adds_and_removes_workers_and_groups() -> None:
    """What is wanted comes true; what is not wanted any more leaves no record."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        await bench.controller.scale(3, 2, bench.policy, grace=0.0)
        await bench.until_ready(["g0-0", "g0-1", "g0-2"])
        await bench.until(lambda: bench.controller.status()["groups"][1]["phase"] == "ready")
        await bench.controller.scale(1, 1, bench.policy, grace=0.0)
        await bench.until_ready(["g0-0"])
        await bench.until(lambda: "g1" in bench.registry.removed)
        assert {"g0-0"} == set(bench.fleet.specs)


async def test_a_group_that_is_wanted_again_while_it_is_stopped_begins_anew() -> None:
    """Scaled down and up in one breath: the stop is finished first, then the group comes up with other workers."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        for groups in (2, 1, 2, 1, 2):
            await bench.controller.scale(2, groups, bench.policy, grace=0.0)
        await bench.until(lambda: bench.phase("g1") == "ready")
        await bench.controller.scale(2, 1, bench.policy, grace=0.0)
        await bench.controller.scale(2, 2, bench.policy, grace=0.0)
        await bench.until(lambda: {"dismiss g1-0", "dismiss g1-1"} <= set(bench.fleet.done))
        await bench.until(lambda: bench.phase("g1") == "ready" and {"g1-2", "g1-3"} <= set(bench.fleet.specs))
        assert "g1" == bench.registry.entries[-1].group
        assert bench.registry.entries[-1].ready


async def test_a_group_that_failed_begins_anew_when_it_is_asked_for() -> None:
    """Whatever it lacked may be there by now."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        bench.fleet.broken["hire g1-1"] = "no place"
        await bench.controller.scale(2, 2, bench.policy, grace=0.0)
        await bench.until(lambda: bench.phase("g1") == "failed")
        await bench.controller.scale(2, 2, bench.policy, grace=0.0)
        await bench.until(lambda: bench.phase("g1") == "ready")
        assert {"g1-2", "g1-3"} <= set(bench.fleet.specs)


async def test_a_group_that_failed_begins_anew_by_itself_where_nobody_would_ask() -> None:
    """On Kubernetes a node or an image may come later than any deadline; each time it waits twice as long."""
    bench = Bench(again=0.05)
    bench.fleet.broken |= {"hire g0-1": "no place", "hire g0-3": "no place"}
    async with bench.running():
        await bench.until_ready(["g0-4", "g0-5"])
        tries = [what for what in bench.fleet.done if what.startswith("hire")]
        assert [f"hire g0-{number}" for number in range(6)] == tries


async def test_a_group_that_is_not_wanted_any_more_does_not_begin_anew() -> None:
    """Stopped while it waits for its next try, it stays stopped."""
    bench = Bench(again=0.2)
    bench.fleet.broken["hire g0-1"] = "no place"
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "failed")
        await bench.controller.stop(0.0)
        await asyncio.sleep(0.4)
        assert "hire g0-2" not in bench.fleet.done


async def test_ticks_while_a_new_group_is_looked_for_hire_nobody() -> None:
    """The look for leftovers of an earlier life takes time; who was hired meanwhile would be taken for one."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        bench.fleet.looking = 1.2  # several ticks
        await bench.controller.scale(2, 2, bench.policy, grace=0.0)
        await bench.until(lambda: bench.phase("g1") == "ready")
        assert not [what for what in bench.fleet.done if what.startswith("kill")]


async def test_what_a_dead_controller_was_stopping_is_stopped_by_the_next() -> None:
    """A group that is wanted no more leaves neither workers nor a record, although nobody remembers that it was one."""
    bench = Bench()
    task = asyncio.create_task(bench.controller.run())
    await bench.until_ready(["g0-0", "g0-1"])
    await bench.controller.scale(2, 3, bench.policy, grace=0.0)
    await bench.until(lambda: bench.phase("g1") == bench.phase("g2") == "ready")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.fleet.die("g2-0")
    bench.fleet.die("g2-1")  # its record alone is left
    again = Bench(fleet=bench.fleet, registry=bench.registry)
    async with again.running():
        await again.until(lambda: {"g1", "g2"} <= set(again.registry.removed))
        assert {"g0-0", "g0-1"} == set(bench.fleet.specs)
        assert "ready" == again.phase("g0")


async def test_a_drained_worker_is_replaced() -> None:
    """It is told to take nothing new, and goes when its replacement is there."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        assert bench.controller.drain("g0-0")
        assert not bench.controller.drain("nobody")
        await bench.until_ready(["g0-1", "g0-2"])
        assert "dismiss g0-0" in bench.fleet.done


async def test_a_new_controller_takes_over_without_touching_anybody() -> None:
    """What lives serves on; what was never prepared is killed; numbers of the dead are not used again."""
    bench = Bench()
    task = asyncio.create_task(bench.controller.run())
    await bench.until_ready(["g0-0", "g0-1"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.fleet.unprepared, bench.fleet.done = ["g0-7"], []
    again = Bench(fleet=bench.fleet)
    async with again.running():
        await again.until_ready(["g0-0", "g0-1"])
        assert bench.fleet.done == ["kill g0-7"]
        bench.fleet.unprepared = []
        bench.fleet.die("g0-0")
        await again.until_ready(["g0-1", "g0-8"])


async def test_who_died_with_the_controller_is_not_named_again() -> None:
    """The survivors know of it from their epoch; its place is taken by another name."""
    bench = Bench()
    task = asyncio.create_task(bench.controller.run())
    await bench.until_ready(["g0-0", "g0-1"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.fleet.die("g0-1")
    again = Bench(fleet=bench.fleet)
    async with again.running():
        await again.until_ready(["g0-0", "g0-2"])


async def test_who_died_before_the_controller_is_not_named_again() -> None:
    """Its place is still empty, and the survivor's epoch is without it."""
    bench = Bench()
    task = asyncio.create_task(bench.controller.run())
    await bench.until_ready(["g0-0", "g0-1"])
    bench.fleet.die("g0-1")
    await bench.until_ready(["g0-0"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "hire g0-2" not in bench.fleet.done, "the replacement waits for its breath"
    again = Bench(fleet=bench.fleet)
    async with again.running():
        await again.until_ready(["g0-0", "g0-2"])


async def test_a_registry_that_is_away_delays_the_announcement_only() -> None:
    """The group comes up without Redis and is announced once it is back."""
    bench = Bench()
    bench.registry.away = True
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        assert bench.registry.entries == []
        bench.registry.away = False
        await bench.until(lambda: [entry.ready for entry in bench.registry.entries] == [True])


async def test_a_registry_that_does_not_answer_delays_no_repair() -> None:
    """A death is repaired while a write hangs; then routers hear of how it is, not of how it was meanwhile."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        await bench.until(lambda: bool(bench.registry.entries))
        bench.registry.answers.clear()
        bench.fleet.die("g0-1")
        await bench.until_ready(["g0-0", "g0-2"])
        bench.registry.answers.set()
        await bench.until(lambda: bench.registry.entries[-1].ready and len(bench.registry.entries[-1].workers) == 2)
        assert len(bench.registry.entries) <= 3


async def test_a_controller_begins_and_ends_while_the_registry_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what it left behind before, nor what routers shall know at the end, is waited for for ever."""
    monkeypatch.setattr(controller, "TOLD", 0.2)
    bench = Bench()
    bench.registry.answers.clear()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
    assert bench.group["phase"] == "stopped"


async def test_a_registry_that_forgot_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that was restarted without its latest writes hears of the group although nothing changes."""
    monkeypatch.setattr(announcer, "ANNOUNCE_AGAIN", 0.1)
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        await bench.until(lambda: bool(bench.registry.entries))
        last = bench.registry.entries[-1]
        bench.registry.entries.clear()
        await bench.until(lambda: last in bench.registry.entries)


async def test_a_stop_tells_routers_first() -> None:
    """The last record says not ready, then everybody is dismissed."""
    bench = Bench()
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        await bench.controller.stop(0.2)
        assert (bench.registry.entries[-1].ready, bench.registry.entries[-1].workers) == (False, ())
        assert {"dismiss g0-0", "dismiss g0-1"} <= set(bench.fleet.done)
        assert bench.group["phase"] == "stopped"


async def test_a_mistake_of_ours_fails_the_group_instead_of_hanging_it() -> None:
    """An exception that nobody foresaw ends in a reason, not in silence."""
    bench = Bench()

    async def explode(group: str, name: str) -> WorkerFacts:
        raise KeyError("oops")

    bench.fleet.hire = explode  # type: ignore[method-assign]  # the point of the test
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "failed")
        assert bench.group["reason"] == "g0-0: controller: KeyError: 'oops'"


async def test_a_controller_that_was_cancelled_writes_nothing_more() -> None:
    """Not even when a client of Redis took the cancellation for an error of its connection, and it is cancelled twice:
    its successor's word must stand."""
    bench = Bench()
    task = asyncio.create_task(bench.controller.run())
    await bench.until_ready(["g0-0", "g0-1"])
    await bench.until(lambda: bool(bench.registry.entries))
    bench.registry.swallows = True
    bench.registry.answers.clear()
    bench.fleet.die("g0-1")
    await bench.until_ready(["g0-0"])
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.01)
    written = len(bench.registry.entries)
    bench.registry.answers.set()
    await asyncio.sleep(0.3)
    assert len(bench.registry.entries) == written
    bench.registry.swallows = False

"""The controller with a fleet of its own: no Ray, no processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shoal.cluster import controller as controller_module
from shoal.cluster.controller import Controller
from shoal.cluster.fleet import FleetError, Found
from shoal.cluster.group_state import GroupState, Mood, Policy, Word
from shoal.cluster.registry_writer import RegistryAwayError
from shoal.wire.registry import GroupEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from tests.cluster.world import facts


class FakeFleet:
    """Workers that do as they are told; what is in `broken` fails, and whatever happens is written to `done`."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.done: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.words: dict[str, asyncio.Queue[Word | None]] = {}
        self.specs: dict[str, GroupSpec | None] = {}
        self.unprepared: list[str] = []

    async def _act(self, what: str) -> None:
        self.done.append(what)
        if why := self.broken.get(what):
            raise FleetError(why)
        await self.hold.wait()

    async def hire(self, group: str, name: str) -> WorkerFacts:
        await self._act(f"hire {name}")
        self.specs[name] = None
        return facts(name)

    async def stage(self, name: str, spec: GroupSpec) -> None:
        await self._act(f"stage {name}")

    async def enter(self, name: str, spec: GroupSpec, together: bool) -> EpochReport:
        await self._act(f"enter {name}")
        self.specs[name] = spec
        self.say(name)
        return EpochReport(spec.rank_of(name), 4, 4, 1, 0.1, 0.1)

    async def drain(self, name: str, wanted: bool) -> None:
        await self._act(f"drain {name}")
        self.say(name, draining=True)

    async def kill(self, name: str, facts: WorkerFacts | None) -> None:
        self.done.append(f"kill {name}")
        self.specs.pop(name, None)

    async def dismiss(self, name: str, grace: float) -> None:
        self.done.append(f"dismiss {name}")
        self.specs.pop(name, None)

    async def survey(self, group: str) -> list[Found]:
        there = [Found(name, facts(name), spec, spec.epoch if spec else 0) for name, spec in self.specs.items()]
        return [*there, *(Found(name, None, None) for name in self.unprepared)]

    def say(self, name: str, mood: Mood = Mood.SERVING, **fields: Any) -> None:
        """The worker speaks."""
        spec = self.specs[name]
        word = Word(name, spec.epoch if spec else 0, mood, busy=False, **fields)
        self.words.setdefault(name, asyncio.Queue()).put_nowait(word)

    def die(self, name: str) -> None:
        """Its socket ends."""
        self.specs.pop(name, None)
        self.words.setdefault(name, asyncio.Queue()).put_nowait(None)

    async def __call__(self, facts: WorkerFacts) -> AsyncIterator[Word]:
        """Listen to it: a heartbeat whenever it says nothing, unless it hangs."""
        queue = self.words.setdefault(facts.worker_id, asyncio.Queue())
        while True:
            try:
                word = await asyncio.wait_for(queue.get(), 0.05)
            except TimeoutError:
                if facts.worker_id not in self.broken:
                    yield Word(facts.worker_id, 0, Mood.SERVING, busy=False)
                continue
            if word is None:
                return
            yield word


class FakeRegistry:
    """Keeps what was published; away while `away`."""

    def __init__(self) -> None:
        self.entries: list[GroupEntry] = []
        self.removed: list[str] = []
        self.away = False

    async def publish(self, entry: GroupEntry) -> None:
        if self.away:
            raise RegistryAwayError("away")
        self.entries.append(entry)

    async def remove(self, group: str) -> None:
        self.removed.append(group)

    async def last_epoch(self, group: str) -> int:
        return 0


class FakeMeeting:
    """A place to meet."""

    port = 1


class Bench:
    """A running controller with its fakes."""

    def __init__(self, start_timeout: float = 60.0, fleet: FakeFleet | None = None) -> None:
        self.fleet, self.registry, self.late = fleet or FakeFleet(), FakeRegistry(), 0.0
        self.policy = Policy(start_timeout=start_timeout)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        self.controller = Controller(
            self.fleet, self.registry, self.fleet, FakeMeeting, [GroupState("g0", 2, 0, start_timeout, self.policy)],
            heartbeat_timeout=0.5, clock=lambda: loop.time() - begin + self.late,
        )  # fmt: skip

    @property
    def group(self) -> dict[str, Any]:
        """The first group's status."""
        group: dict[str, Any] = self.controller.status()["groups"][0]
        return group

    @property
    def ranks(self) -> list[str]:
        """Names by rank."""
        return [w["worker_id"] for w in self.group["workers"] if w["rank"] is not None]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds; a test that waits longer than 10 s is wrong."""
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110  # the controller tells nobody else what it does
                await asyncio.sleep(0.01)

    async def until_ready(self, ranks: list[str]) -> None:
        """Until these serve."""
        await self.until(lambda: self.group["phase"] == "ready" and self.ranks == ranks)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The controller at work, stopped at the end."""
        task = asyncio.create_task(self.controller.run())
        try:
            yield
        finally:
            self.fleet.hold.set()
            await asyncio.wait_for(self.controller.stop(0.0), 10)
            await task


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
    bench = Bench()
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


async def test_a_registry_that_is_away_delays_the_announcement_only() -> None:
    """The group comes up without Redis and is announced once it is back."""
    bench = Bench()
    bench.registry.away = True
    async with bench.running():
        await bench.until_ready(["g0-0", "g0-1"])
        assert bench.registry.entries == []
        bench.registry.away = False
        await bench.until(lambda: [entry.ready for entry in bench.registry.entries] == [True])


async def test_a_registry_that_forgot_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that was restarted without its latest writes hears of the group although nothing changes."""
    monkeypatch.setattr(controller_module, "ANNOUNCE_AGAIN", 0.1)
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

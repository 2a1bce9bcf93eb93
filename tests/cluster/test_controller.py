"""The controller with a fleet of its own: no Ray, no processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from shoal.cluster.controller import Controller, FleetError
from shoal.cluster.lifecycle import GroupState
from shoal.cluster.registry_writer import RegistryAwayError
from shoal.wire.registry import GroupEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from tests.cluster.test_lifecycle import facts, report


class FakeFleet:
    """Ranks that do as they are told; what is in `broken` fails, and whatever happens is written to `done`."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.done: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def _act(self, what: str) -> None:
        self.done.append(what)
        if why := self.broken.get(what):
            raise FleetError(why)
        await self.hold.wait()

    async def reserve(self, group: str, ep_size: int) -> None:
        await self._act(f"reserve {ep_size}")

    async def prepare(self, group: str, rank: int) -> WorkerFacts:
        await self._act(f"prepare {rank}")
        return facts(rank)

    async def join(self, group: str, rank: int, spec: GroupSpec) -> EpochReport:
        await self._act(f"join {rank}")
        return report(rank)

    async def probe(self, group: str, rank: int) -> None:
        if why := self.broken.get(f"probe {rank}"):
            raise FleetError(why)

    async def release(self, group: str, grace: float) -> None:
        self.done.append(f"release {grace:g}")


class FakeRegistry:
    """Keeps what was published; away while `away`."""

    def __init__(self) -> None:
        self.entries: list[GroupEntry] = []
        self.away = False

    async def publish(self, entry: GroupEntry) -> None:
        if self.away:
            raise RegistryAwayError("away")
        self.entries.append(entry)

    async def last_epoch(self, group: str) -> int:
        return 0


class Bench:
    """A running controller with its fakes."""

    def __init__(self, start_timeout: float = 60.0) -> None:
        self.fleet, self.registry, self.now = FakeFleet(), FakeRegistry(), 0.0
        state = GroupState("g0", 2, 1, "127.0.0.1", 1, deadline=start_timeout)
        self.controller = Controller(self.fleet, self.registry, [state], clock=lambda: self.now)

    @property
    def group(self) -> dict[str, Any]:
        """The one group's status."""
        group: dict[str, Any] = self.controller.status()["groups"][0]
        return group

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds; a test that waits longer than 5 s is wrong."""
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110  # the controller tells nobody else what it does
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The controller at work, stopped at the end."""
        task = asyncio.create_task(self.controller.run())
        try:
            yield
        finally:
            self.fleet.hold.set()
            await asyncio.wait_for(self.controller.stop(0.0), 5)
            await task


async def test_a_group_comes_up_in_order() -> None:
    """Places, then all processes, then all joins, then the announcement; status tells what each rank is."""
    bench = Bench()
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "ready")
        assert bench.fleet.done == ["reserve 2", "prepare 0", "prepare 1", "join 0", "join 1"]
        assert [entry.ready for entry in bench.registry.entries] == [False, True]
        assert [worker["experts_loaded"] for worker in bench.group["workers"]] == [4, 4]


async def test_a_rank_that_cannot_prepare_fails_the_group() -> None:
    """The reason is kept for people, and everything is given back."""
    bench = Bench()
    bench.fleet.broken["prepare 1"] = "CheckpointError: truncated"
    async with bench.running():
        await bench.until(lambda: "release 0" in bench.fleet.done)
        assert (bench.group["phase"], bench.group["reason"]) == ("failed", "rank 1: CheckpointError: truncated")


async def test_a_start_that_hangs_ends_at_its_deadline() -> None:
    """Time comes from the clock that the controller was given."""
    bench = Bench(start_timeout=60.0)
    bench.fleet.hold.clear()
    async with bench.running():
        await bench.until(lambda: bench.fleet.done == ["reserve 2"])
        bench.now = 61.0
        await bench.until(lambda: bench.group["phase"] == "failed")
        assert bench.group["reason"] == "not ready in time, still placing"


async def test_a_rank_that_dies_is_noticed() -> None:
    """Routers are told that the group is not ready; the survivors are kept."""
    bench = Bench()
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "ready")
        bench.fleet.broken["probe 1"] = "its process died"
        await bench.until(lambda: bench.group["phase"] == "failed")
        assert not bench.registry.entries[-1].ready
        assert not [what for what in bench.fleet.done if what.startswith("release")]


async def test_a_registry_that_is_away_delays_the_announcement_only() -> None:
    """The group comes up without Redis and is announced once it is back."""
    bench = Bench()
    bench.registry.away = True
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "ready")
        assert bench.registry.entries == []
        bench.registry.away = False
        await bench.until(lambda: [entry.ready for entry in bench.registry.entries] == [True])


async def test_a_stop_tells_routers_first() -> None:
    """The last record says not ready, and the workers get the grace that was asked for."""
    bench = Bench()
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "ready")
        await bench.controller.stop(2.5)
        assert bench.fleet.done[-1] == "release 2.5"
        assert (bench.registry.entries[-1].ready, bench.registry.entries[-1].workers) == (False, ())
        assert bench.group["phase"] == "stopped"


async def test_a_mistake_of_ours_fails_the_group_instead_of_hanging_it() -> None:
    """An exception that nobody foresaw ends in a reason, not in silence."""
    bench = Bench()

    async def explode(group: str, ep_size: int) -> None:
        raise KeyError("oops")

    bench.fleet.reserve = explode  # type: ignore[method-assign]  # the point of the test
    async with bench.running():
        await bench.until(lambda: bench.group["phase"] == "failed")
        assert bench.group["reason"] == "controller: KeyError: 'oops'"

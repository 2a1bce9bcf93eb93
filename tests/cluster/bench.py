"""A running controller with a fleet and a registry of its own: no Ray, no processes, no Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from shoal.cluster.controller import Controller
from shoal.cluster.fleet import FleetError, Found
from shoal.cluster.group_state import GroupState, Mood, Policy, Word
from shoal.cluster.registry_writer import RegistryAwayError
from shoal.wire.registry import GroupEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from tests.cluster.world import facts


class FakeFleet:
    """Workers that do as they are told; what is in `broken` fails, and whatever happens is written to `done`. A look at
    who is there takes `looking` seconds; `felt` is (share of KV, seconds in the queue) of a worker."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.done: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.words: dict[str, asyncio.Queue[Word | None]] = {}
        self.specs: dict[str, GroupSpec | None] = {}
        self.unprepared: list[str] = []
        self.looking = 0.0
        self.felt: dict[str, tuple[float, float]] = {}

    async def _act(self, what: str) -> None:
        self.done.append(what)
        if why := self.broken.get(what):
            raise FleetError(why)
        await self.hold.wait()

    async def hire(self, group: str, name: str) -> WorkerFacts:
        await self._act(f"hire {name}")
        self.specs[name] = None
        return facts(name)

    async def stage(self, name: str, spec: GroupSpec, patient: bool) -> None:
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
        await asyncio.sleep(self.looking)
        there = [Found(name, facts(name), spec, spec.epoch if spec else 0) for name, spec in self.specs.items()]
        there += [Found(name, None, None) for name in self.unprepared]
        return [worker for worker in there if worker.name.rpartition("-")[0] == group]

    async def groups(self) -> list[str]:
        return sorted({name.rpartition("-")[0] for name in (*self.specs, *self.unprepared)})

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
                    kv_used, waited = self.felt.get(facts.worker_id, (0.0, 0.0))
                    yield Word(facts.worker_id, 0, Mood.SERVING, False, kv_used=kv_used, queue_seconds=waited)
                continue
            if word is None:
                return
            yield word


class FakeRegistry:
    """Keeps what was published; away while `away`; says nothing at all until it `answers`; a client of
    Redis that `swallows` takes a cancellation for an error."""

    def __init__(self) -> None:
        self.entries: list[GroupEntry] = []
        self.removed: list[str] = []
        self.away = False
        self.swallows = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def publish(self, entry: GroupEntry) -> None:
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            if self.swallows:
                raise RegistryAwayError("the connection broke") from None
            raise
        if self.away:
            raise RegistryAwayError("away")
        self.entries.append(entry)

    async def remove(self, group: str) -> None:
        await self.answers.wait()
        self.removed.append(group)

    async def last_epoch(self, group: str) -> int:
        return 0

    async def groups(self) -> list[str]:
        await self.answers.wait()
        return sorted({entry.group for entry in self.entries} - set(self.removed))


class FakeMeeting:
    """A place to meet."""

    port = 1


class Bench:
    """A running controller with its fakes."""

    def __init__(
        self,
        start_timeout: float = 60.0,
        fleet: FakeFleet | None = None,
        registry: FakeRegistry | None = None,
        heartbeat_timeout: float = 8.0,
        again: float = 0.0,
    ) -> None:
        self.fleet, self.registry, self.late = fleet or FakeFleet(), registry or FakeRegistry(), 0.0
        self.policy = Policy(start_timeout=start_timeout, again=again)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        self.controller = Controller(
            self.fleet, self.registry, self.fleet, FakeMeeting, [GroupState("g0", 2, 0, start_timeout, self.policy)],
            heartbeat_timeout=heartbeat_timeout, clock=lambda: loop.time() - begin + self.late,
        )  # fmt: skip

    @property
    def group(self) -> dict[str, Any]:
        """The first group's status."""
        group: dict[str, Any] = self.controller.status()["groups"][0]
        return group

    def phase(self, group: str) -> str:
        """Of any group; empty: there is none."""
        found = {g["group"]: g["phase"] for g in self.controller.status()["groups"]}
        return str(found.get(group, ""))

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

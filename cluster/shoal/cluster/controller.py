"""Makes the running groups equal to the declared ones: performs what `lifecycle` decides and tells it what came of it.

    controller = Controller(fleet, registry, [GroupState(...)])
    task = asyncio.create_task(controller.run())   # until every group is stopped
    ...
    await controller.stop(grace=10.0)

One queue, one consumer: a group's state changes nowhere else. What takes long runs in tasks that end in an event. A
registry that is away delays announcements, it breaks no group: what could not be written is written at a later tick.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import structlog

from shoal.cluster import lifecycle as life
from shoal.cluster.lifecycle import GroupState, Phase
from shoal.cluster.registry_writer import Registry, RegistryAwayError
from shoal.wire.registry import GroupEntry
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts

log = structlog.get_logger()

TICK = 0.5
"""Seconds between two looks at the workers."""


class FleetError(Exception):
    """Workers could not be placed, or one failed or died; the message is one line."""


class Fleet(Protocol):
    """The processes of all groups. Methods raise FleetError unless they say otherwise, and may be cancelled."""

    async def reserve(self, group: str, ep_size: int) -> None:
        """Get one place per rank, all or none. Returns when all are there."""

    async def prepare(self, group: str, rank: int) -> WorkerFacts:
        """Start the rank's process and let it prepare."""

    async def join(self, group: str, rank: int, spec: GroupSpec) -> EpochReport:
        """Let the rank join."""

    async def probe(self, group: str, rank: int) -> None:
        """Raises when the rank is dead or serves no more; an answer that is merely late raises nothing."""

    async def release(self, group: str, grace: float) -> None:
        """Stop the group's processes and give the places back. Never raises; safe to repeat."""


class Controller:
    """The groups of one cluster. All methods belong to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        groups: Iterable[GroupState],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._clock = clock
        self.groups = {state.group: state for state in groups}
        self._events: asyncio.Queue[tuple[str, life.Event]] = asyncio.Queue()
        self._unwritten: dict[str, GroupEntry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Bring every group up and look after it; returns once all are stopped."""
        for group in self.groups:
            self._events.put_nowait((group, life.Begun()))
        ticking = asyncio.create_task(self._tick())
        try:
            while any(state.phase is not Phase.STOPPED for state in self.groups.values()):
                group, event = await self._events.get()
                await self._handle(group, event)
        finally:
            for task in [ticking, *self._tasks]:
                task.cancel()
            self._stopped.set()

    async def stop(self, grace: float) -> None:
        """Stop every group; returns when their processes are gone. Needs `run` to be running, or to have ended."""
        for group in self.groups:
            self._events.put_nowait((group, life.StopAsked(grace)))
        await self._stopped.wait()

    def status(self) -> dict[str, Any]:
        """Every group with its ranks, as plain values."""
        return {"groups": [_describe(state) for state in self.groups.values()]}

    async def _handle(self, group: str, event: life.Event) -> None:
        before = self.groups[group]
        state, actions = life.step(before, event, self._clock())
        self.groups[group] = state
        if state.phase is not before.phase:
            level = log.error if state.phase is Phase.FAILED else log.info
            level("group changed", group=group, epoch=state.epoch, phase=str(state.phase), reason=state.reason)
        if state.phase is not before.phase and state.phase in (Phase.FAILED, Phase.STOPPING):
            self._cancel(group)
        for action in actions:
            await self._perform(group, action)
        if isinstance(event, life.Tick):
            await self._write_registry()
            if state.phase is Phase.READY:
                for rank in range(state.ep_size):
                    self._spawn(group, f"probe {rank}", self._probe(group, rank))

    async def _perform(self, group: str, action: life.Action) -> None:
        match action:
            case life.Publish(entry):
                self._unwritten[group] = entry
                await self._write_registry()
            case life.Reserve(ep_size):
                self._spawn(group, "reserve", self._reserve(group, ep_size))
            case life.Prepare(ep_size):
                for rank in range(ep_size):
                    self._spawn(group, f"prepare {rank}", self._prepare(group, rank))
            case life.Join(spec):
                for rank in range(spec.size):
                    self._spawn(group, f"join {rank}", self._join(group, rank, spec))
            case life.Release(grace):
                self._spawn(group, "release", self._release(group, grace))

    async def _write_registry(self) -> None:
        for group, entry in list(self._unwritten.items()):
            try:
                await self._registry.publish(entry)
            except RegistryAwayError as error:
                log.warning("registry not written, will try again", group=group, error=str(error))
            else:
                del self._unwritten[group]

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for group in self.groups:
                self._events.put_nowait((group, life.Tick()))

    # -- what takes long: each ends in one event, or in none when it was cancelled -------------------------------------

    async def _reserve(self, group: str, ep_size: int) -> None:
        await self._report(group, None, self._fleet.reserve(group, ep_size), lambda _: life.Placed())

    async def _prepare(self, group: str, rank: int) -> None:
        await self._report(group, rank, self._fleet.prepare(group, rank), lambda facts: life.Prepared(rank, facts))

    async def _join(self, group: str, rank: int, spec: GroupSpec) -> None:
        joining = self._fleet.join(group, rank, spec)
        await self._report(group, rank, joining, lambda report: life.Joined(rank, report))

    async def _probe(self, group: str, rank: int) -> None:
        await self._report(group, rank, self._fleet.probe(group, rank), lambda _: None)

    async def _release(self, group: str, grace: float) -> None:
        try:
            await self._fleet.release(group, grace)
        except Exception:
            log.exception("a group was not released cleanly", group=group)
        self._events.put_nowait((group, life.Released()))

    async def _report(
        self, group: str, rank: int | None, work: Awaitable[Any], outcome: Callable[[Any], life.Event | None]
    ) -> None:
        event: life.Event | None
        try:
            event = outcome(await work)
        except FleetError as error:
            event = life.Broken(rank, str(error))
        except Exception as error:
            log.exception("controller failed at its work", group=group, rank=rank)
            event = life.Broken(rank, f"controller: {type(error).__name__}: {error}")
        if event is not None:
            self._events.put_nowait((group, event))

    def _spawn(self, group: str, what: str, work: Any) -> None:
        name = f"{group}: {what}"
        if any(task.get_name() == name for task in self._tasks):
            work.close()  # the same is under way: a slow probe must not pile up
            return
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self, group: str) -> None:
        for task in self._tasks:
            if task.get_name().startswith(f"{group}: ") and not task.get_name().endswith(": release"):
                task.cancel()


def _describe(state: GroupState) -> dict[str, Any]:
    reports = state.reports or (None,) * len(state.facts)
    workers = [
        {"rank": rank, **dataclasses.asdict(facts), "experts_loaded": report.experts_held if report else 0}
        for rank, (facts, report) in enumerate(zip(state.facts, reports, strict=True))
        if facts is not None
    ]
    return {
        "group": state.group,
        "epoch": state.epoch,
        "phase": str(state.phase),
        "reason": state.reason,
        "ep_size": state.ep_size,
        "workers": workers,
    }

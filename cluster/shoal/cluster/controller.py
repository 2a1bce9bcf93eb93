"""Makes the running groups equal to the declared ones: performs what `lifecycle` decides and tells it what came of it.

    controller = Controller(fleet, registry, watch, [GroupState(...)])
    task = asyncio.create_task(controller.run())   # until every group is stopped
    controller.scale(ep_size=4, groups=1)
    await controller.stop(grace=10.0)

One queue, one consumer: a group's state changes nowhere else. What takes long runs in tasks that end in an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from shoal.cluster import group_actions as do
from shoal.cluster import lifecycle
from shoal.cluster.announcer import Announcer
from shoal.cluster.fleet import Fleet, FleetError, Found, Meeting, Watch
from shoal.cluster.group_state import (
    Balanced,
    Begun,
    DrainAsked,
    Entered,
    Event,
    GroupState,
    Lost,
    Mood,
    Phase,
    Policy,
    Prepared,
    Refused,
    Released,
    Scaled,
    Stage,
    StopAsked,
    Tick,
    Word,
)
from shoal.cluster.heartbeats import Heartbeats
from shoal.cluster.registry_writer import Registry, RegistryAwayError
from shoal.cluster.retries import Retries
from shoal.cluster.status_report import describe
from shoal.cluster.tasks import Tasks
from shoal.wire.ending import ended
from shoal.workers.experts.group import GroupSpec, WorkerFacts
from shoal.workers.experts.placement import Placement

log = structlog.get_logger()

TICK = 0.5
"""Seconds between two ticks of the groups."""

LOOK = 0.1
"""Seconds between two looks at who is silent."""

TOLD = 2.0
"""Seconds that a registry which is away may delay what must not come before routers know of it."""


class Controller:
    """The groups of one cluster. All methods belong to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        watch: Watch,
        meeting: Callable[[], Meeting],
        groups: Iterable[GroupState],
        *,
        heartbeat_timeout: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A worker that is silent for `heartbeat_timeout` seconds is killed and replaced."""
        self._fleet, self._registry, self._watch, self._meeting = fleet, registry, watch, meeting
        self._clock = clock
        self.groups = {state.group: state for state in groups}
        self._heartbeats = Heartbeats(heartbeat_timeout)
        self._events: asyncio.Queue[tuple[str, Event]] = asyncio.Queue()
        self._announcer = Announcer(registry, clock)
        self._tasks = Tasks()
        self._meetings: dict[str, list[Meeting]] = {}
        self.words: dict[str, Word] = {}
        """The last of each worker that is listened to."""
        self._reminded: dict[str, float] = {}
        self._stopped = asyncio.Event()
        self._wanted: dict[str, tuple[int, Policy]] = {}
        """Size and policy of each group, as `scale` said."""
        self._beginning = asyncio.Lock()
        self._retries = Retries()

    async def run(self) -> None:
        """Bring every group up, or take it over as it is, and look after it; returns once all are stopped. What an
        earlier controller did not finish stopping is stopped."""
        for group in list(self.groups):
            await self._begin(group)
        for group in await self._left_over():
            self.groups[group] = GroupState(group, 1, 0, self._clock())
            self._events.put_nowait((group, StopAsked(0.0)))
        ticking = [asyncio.create_task(work()) for work in (self._tick, self._judge, self._announcer.run)]
        try:
            while any(state.phase is not Phase.STOPPED for state in self.groups.values()):
                group, event = await self._events.get()
                if group in self.groups:
                    await self._handle(group, event)
            await self._announcer.told(*self.groups, within=TOLD)
        finally:
            self._stopped.set()
            # Whoever cancels us once more does not stop this: an announcer that lived on would write what is over.
            await asyncio.shield(ended([*ticking, *self._tasks.all]))

    async def stop(self, grace: float) -> None:
        """Stop every group; returns when their processes are gone. Needs `run` to be running, or to have ended."""
        self._wanted = {}
        for group in self.groups:
            self._events.put_nowait((group, StopAsked(grace)))
        await self._stopped.wait()

    async def scale(self, ep_size: int, groups: int, policy: Policy, grace: float) -> None:
        """Want this from now on; routers are told as it comes true. A group that failed begins anew, and so does one
        that is being stopped, as soon as it is."""
        self._wanted = {f"g{number}": (ep_size, policy) for number in range(groups)}
        for group in [group for group in self.groups if group not in self._wanted]:
            self._events.put_nowait((group, StopAsked(grace)))
        for group in self._wanted:
            known = self.groups.get(group)
            if known is None or known.phase is Phase.STOPPED:
                await self._begin_anew(group)
            else:
                self._events.put_nowait((group, StopAsked(0.0) if known.phase is Phase.FAILED else Scaled(ep_size)))

    def drain(self, name: str) -> bool:
        """Send a member away and put another in its place. False when there is no such member."""
        for group, state in self.groups.items():
            hand = state.hand(name)
            if hand is not None and hand.stage is Stage.MEMBER:
                self._events.put_nowait((group, DrainAsked(name)))
                return True
        return False

    def rebalance(self, group: str, epoch: int, placement: Placement) -> None:
        """Change to this placement, unless the epoch is over by then."""
        self._events.put_nowait((group, Balanced(epoch, placement)))

    def status(self) -> dict[str, Any]:
        """Every group with its ranks, as plain values."""
        return {"groups": [describe(state) for state in self.groups.values()]}

    # -- one event after another ----------------------------------------------------------------------------------

    async def _begin(self, group: str) -> None:
        """Begin a group with what is left of an earlier life. Workers that were never prepared are not kept."""
        found, there = [], await self._fleet.survey(group)
        for worker in there:
            if worker.facts is None:
                await self._fleet.kill(worker.name, None)
                continue
            found.append((worker.facts, worker.spec))
            self.groups[group] = replace(self.groups[group], epoch=max(self.groups[group].epoch, worker.epoch))
            self._listen(group, worker.facts)
        self._events.put_nowait((group, Begun(tuple(found), _next_serial(there))))

    async def _begin_anew(self, group: str) -> None:
        """Begin a group that was stopped, or never was, if it is still wanted then. Nothing is taken over. Its state
        comes last: an event before that would hire workers only to find and kill them here."""
        async with self._beginning:
            known = self.groups.get(group)
            if known is not None and known.phase is not Phase.STOPPED:
                return
            self._tasks.cancel(f"{group}: release")  # one that another stop made needless would end the newcomers
            left = await self._fleet.survey(group)
            for worker in left:
                await self._fleet.kill(worker.name, worker.facts)
            if group not in self._wanted:
                return
            ep_size, policy = self._wanted[group]
            epoch, serial = (known.epoch, known.serial) if known is not None else (0, 0)
            deadline = self._clock() + policy.start_timeout
            epoch = max([epoch, *(worker.epoch for worker in left)])
            self.groups[group] = GroupState(group, ep_size, epoch, deadline, policy)
            self._events.put_nowait((group, Begun(serial=max(serial, _next_serial(left)))))

    async def _left_over(self) -> list[str]:
        """Groups that nobody wants and that have workers or a record."""
        found = set(await self._fleet.groups())
        with contextlib.suppress(RegistryAwayError, TimeoutError):
            async with asyncio.timeout(TOLD):
                found |= set(await self._registry.groups())
        return sorted(found - set(self.groups))

    async def _handle(self, group: str, event: Event) -> None:
        before = self.groups[group]
        state, actions = lifecycle.step(before, event, self._clock())
        self.groups[group] = state
        if state.phase is not before.phase or state.epoch != before.epoch:
            level = log.error if state.phase is Phase.FAILED else log.info
            level("group changed", group=group, epoch=state.epoch, phase=str(state.phase), reason=state.reason)
        if state.phase is not before.phase and state.phase in (Phase.FAILED, Phase.STOPPING):
            self._tasks.cancel(f"{group}: hire")
            self._tasks.cancel(f"{group}: epoch")
            self._tasks.cancel(f"{group}: again")
        for action in actions:
            self._perform(group, before, action)
        if state.phase is Phase.READY:
            self._retries.well(group)
        if state.phase is Phase.FAILED and before.phase is not Phase.FAILED and state.policy.again:
            self._tasks.spawn(f"{group}: again", self._again(group, state))
        if isinstance(event, Tick):
            self._announcer.tick()
        if state.phase is Phase.STOPPED:
            self._announcer.remove(group)
            if group in self._wanted:
                await self._begin_anew(group)

    def _perform(self, group: str, before: GroupState, action: do.Action) -> None:
        match action:
            case do.Publish(entry):
                self._announcer.publish(entry)
            case do.Hire(name):
                self._tasks.spawn(f"{group}: hire {name}", self._hire(group, name))
            case do.Enter(spec, together):
                self._tasks.cancel(f"{group}: epoch")
                self._tasks.spawn(f"{group}: epoch {spec.epoch}", self._enter(group, self._met(spec), together))
            case do.Drain(name, wanted):
                self._tasks.spawn(f"{group}: drain {name} {wanted}", self._drain(name, wanted))
            case do.Kill(name):
                self._forget(group, name)
                hand = before.hand(name)
                self._tasks.spawn(f"{group}: kill {name}", self._fleet.kill(name, hand.facts if hand else None))
            case do.Dismiss(name):
                self._forget(group, name)
                self._tasks.spawn(f"{group}: dismiss {name}", self._fleet.dismiss(name, 0.0))
            case do.Remind(at):
                self._reminded[group] = min(at, self._reminded.get(group, at))
            case do.Release(grace):
                self._tasks.spawn(f"{group}: release", self._release(group, before, grace))

    async def _tick(self) -> None:
        last = self._clock()
        while True:
            await asyncio.sleep(min(LOOK, max(0.001, min(self._reminded.values(), default=1e18) - self._clock())))
            now = self._clock()
            due = {group for group, at in self._reminded.items() if now >= at}
            for group in due:
                del self._reminded[group]
            if now - last >= TICK:
                last, due = now, set(self.groups)
            for group in due:
                self._events.put_nowait((group, Tick()))

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            for name in self._heartbeats.silent(self._clock()):
                why = f"silent for {self._heartbeats.timeout:g} s"
                for group, state in self.groups.items():
                    if state.hand(name) is not None:
                        log.warning("a worker hangs", worker=name, why=why)
                        self._lost(group, name, why)

    # -- what takes long: each ends in events, or in none when it was cancelled ----------------------------------

    async def _hire(self, group: str, name: str) -> None:
        try:
            facts = await self._fleet.hire(group, name)
        except Exception as error:
            self._lost(group, name, _told(error))
            return
        self._listen(group, facts)
        self._events.put_nowait((group, Prepared(name, facts)))

    async def _enter(self, group: str, spec: GroupSpec, together: bool) -> None:
        """While the epoch before is served, everybody reads first what the new one needs; else nobody waits."""
        names = [m.worker_id for m in spec.members]
        if together and not all(await asyncio.gather(*(self._stage(group, name, spec, together) for name in names))):
            return
        await asyncio.gather(*(self._enter_one(group, name, spec, together) for name in names))

    async def _stage(self, group: str, name: str, spec: GroupSpec, patient: bool) -> bool:
        return await self._refusable(group, name, spec, self._fleet.stage(name, spec, patient)) is not _REFUSED

    async def _enter_one(self, group: str, name: str, spec: GroupSpec, together: bool) -> None:
        if not together and not await self._stage(group, name, spec, False):
            return
        report = await self._refusable(group, name, spec, self._fleet.enter(name, spec, together))
        if report is not _REFUSED:
            self._events.put_nowait((group, Entered(name, spec.epoch, report)))

    async def _refusable(self, group: str, name: str, spec: GroupSpec, work: Awaitable[Any]) -> Any:
        """What the work gives, or _REFUSED after saying so."""
        try:
            return await work
        except FleetError as error:
            refused = Refused(name, spec.epoch, error.obstacle, str(error))
        except Exception as error:
            log.exception("controller failed at its work", group=group, worker=name)
            refused = Refused(name, spec.epoch, FleetError("").obstacle, _told(error))
        self._events.put_nowait((group, refused))
        return _REFUSED

    async def _drain(self, name: str, wanted: bool) -> None:
        with contextlib.suppress(FleetError):  # its death is told by other ways
            await self._fleet.drain(name, wanted)

    async def _follow(self, group: str, facts: WorkerFacts) -> None:
        name = facts.worker_id
        self._heartbeats.heard(name, self._clock())
        async for word in self._watch(facts):
            self._heartbeats.heard(name, self._clock())
            known, self.words[name] = self.words.get(name), word
            # a group need not hear that all is well
            if word.mood is not Mood.SERVING or word.draining or known is None or known.busy != word.busy:
                self._events.put_nowait((group, word))
        self._lost(group, name, "its process died")

    async def _release(self, group: str, state: GroupState, grace: float) -> None:
        names = [hand.name for hand in state.workers]
        try:
            await self._announcer.told(group, within=TOLD)
            if grace > 0:
                await asyncio.gather(*(self._drain(name, True) for name in names))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        while any(name in self.words and self.words[name].busy for name in names):  # noqa: ASYNC110  # told by heartbeats
                            await asyncio.sleep(0.05)
            for name in names:
                self._forget(group, name)
            await asyncio.gather(*(self._fleet.dismiss(name, 0.0) for name in names))
            for worker in await self._fleet.survey(group):
                await self._fleet.kill(worker.name, worker.facts)
        except Exception:
            log.exception("a group was not released cleanly", group=group)
        self._meetings.pop(group, None)
        self._events.put_nowait((group, Released()))

    async def _again(self, group: str, state: GroupState) -> None:
        """What a start lacked may be there later: a node, an image, a file."""
        pause = self._retries.failed(group, state.policy.again)
        log.warning("the group begins anew later", group=group, seconds=pause)
        await asyncio.sleep(pause)
        self._wanted.setdefault(group, (state.ep_size, state.policy))
        self._events.put_nowait((group, StopAsked(0.0)))

    # -- small things ---------------------------------------------------------------------------------------------

    def _lost(self, group: str, name: str, why: str) -> None:
        serving = (Phase.READY, Phase.CHANGING)
        elsewhere = any(state.phase in serving for other, state in self.groups.items() if other != group)
        self._events.put_nowait((group, Lost(name, why, elsewhere)))

    def _met(self, spec: GroupSpec) -> GroupSpec:
        """The epoch with a meeting place of its own; the one before keeps its place until it is over."""
        meeting = self._meeting()
        self._meetings[spec.group] = [*self._meetings.get(spec.group, [])[-1:], meeting]
        return replace(spec, store_port=meeting.port)

    def _listen(self, group: str, facts: WorkerFacts) -> None:
        self._tasks.spawn(f"{group}: watch {facts.worker_id}", self._follow(group, facts))

    def _forget(self, group: str, name: str) -> None:
        self._tasks.cancel(f"{group}: watch {name}", exactly=True)
        self._tasks.cancel(f"{group}: hire {name}", exactly=True)
        self._heartbeats.forget(name)
        self.words.pop(name, None)


_REFUSED = object()


def _next_serial(there: Sequence[Found]) -> int:
    """A number that no worker of the group has had in its name, living or dead, as far as the living know: who died
    under another controller shall not be taken for who comes in its place."""
    known = [int(worker.name.rpartition("-")[2]) + 1 for worker in there]
    return max([*known, *(worker.spec.serial for worker in there if worker.spec is not None)], default=0)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, FleetError) else f"controller: {type(error).__name__}: {error}"

"""Measures the cluster about once a second, lets `autoscale` decide, and scales as `shoal scale` would.

Workers say with their heartbeats how full they are and how long their queues; routers say what clients feel, through
Redis. Nothing is decided while a group starts, changes or stops (what is measured then is the change itself), nor
while a part cannot be measured. A group that could not be had is given up again.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from shoal.cluster.autoscale import AutoscalePolicy, Decision, Measured, Memory, decide
from shoal.cluster.controller import Controller
from shoal.cluster.group_state import GroupState, Phase, Word
from shoal.cluster.registry_writer import RegistryAwayError
from shoal.wire.load import PERIOD, AutoscaleEntry, RouterLoad
from shoal.wire.registry import Desired

log = structlog.get_logger()

FEWEST_REQUESTS = 4
"""Requests of which a time to first token is worth anything: one long prompt does not come sooner with more groups."""

_FRESH = 5.0  # seconds after which a router that says nothing is not there any more

_MOVING = {Phase.STARTING: "starts", Phase.CHANGING: "changes", Phase.STOPPING: "stops"}


class Board(Protocol):
    """Where routers say their load and the autoscaler what it does. Methods raise RegistryAwayError."""

    async def loads(self) -> list[RouterLoad]:
        """What routers said since this was asked last."""

    async def autoscale(self) -> AutoscaleEntry | None:
        """What an autoscaler said last."""

    async def tell_autoscale(self, entry: AutoscaleEntry) -> None:
        """Say it."""


class Autoscaler:
    """Belongs to the controller's event loop. `look` is one look; `run` looks for ever."""

    def __init__(
        self,
        policy: AutoscalePolicy,
        controller: Controller,
        board: Board,
        desired: Callable[[], Desired],
        want: Callable[[Desired], Awaitable[str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`want` scales: it says what is wrong with a size, empty when it was taken. May raise RegistryAwayError."""
        self._policy, self._controller, self._board = policy, controller, board
        self._desired, self._want, self._clock = desired, want, clock
        self._memory = Memory()
        self._heard: dict[str, tuple[RouterLoad, float]] = {}
        self._last = AutoscaleEntry(0, policy.least, policy.most, 0.0, 0.0, 0.0, "begins")

    async def run(self) -> None:
        """About once a second. What goes wrong is tried again."""
        await self._recall()
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.look()
            except RegistryAwayError as error:
                self._memory = self._memory.interrupted()
                log.warning("the autoscaler cannot look", problem=str(error))
            except Exception:  # a mistake of ours must not end it for good
                self._memory = self._memory.interrupted()
                log.exception("the autoscaler failed")

    async def look(self) -> AutoscaleEntry:
        """Measure, decide, act, tell. Raises RegistryAwayError."""
        loads = await self._loads()
        wanted, states = self._desired(), list(self._controller.groups.values())
        words = [self._controller.words.get(name) for name in members(states)]
        measured = measured_by([word for word in words if word is not None], loads)
        if doing := moving(states) or unheard(words, loads):
            self._memory = self._memory.interrupted()
        elif (decision := self._decide(wanted.groups, states, measured)).groups != wanted.groups:
            doing = await self._scale(wanted, decision)
        else:
            self._memory = decision.memory
        self._last = replace(
            self._last, groups=self._desired().groups, queue_seconds=measured.queue_seconds, kv_used=measured.kv_used,
            first_token_seconds=measured.first_token_seconds, doing=doing,
        )  # fmt: skip
        await self._board.tell_autoscale(self._last)
        return self._last

    def _decide(self, groups: int, states: Sequence[GroupState], measured: Measured) -> Decision:
        now = self._clock()
        if groups > self._policy.least and (lost := could_not_be_had(groups, states)):
            return Decision(groups - 1, lost, Memory(changed_at=now))
        return decide(self._policy, self._memory, groups, measured, now)

    async def _scale(self, wanted: Desired, decision: Decision) -> str:
        """What is wrong, empty when it was done."""
        log.info("autoscale", before=wanted.groups, groups=decision.groups, why=decision.why)
        if problem := await self._want(replace(wanted, groups=decision.groups)):
            self._memory = self._memory.interrupted()
            return problem
        self._memory = decision.memory
        why, after = decision.why, decision.groups
        self._last = replace(self._last, before=wanted.groups, after=after, why=why, when=time.time())
        return ""

    async def _loads(self) -> list[RouterLoad]:
        now = self._clock()
        for load in await self._board.loads():
            self._heard[load.router_id] = (load, now)
        self._heard = {name: heard for name, heard in self._heard.items() if now - heard[1] <= _FRESH}
        return [load for load, _ in self._heard.values()]

    async def _recall(self) -> None:
        """An earlier controller's last decision is still the last one."""
        try:
            before = await self._board.autoscale()
        except RegistryAwayError:
            return
        if before is not None:
            kept = {key: getattr(before, key) for key in ("before", "after", "why", "when")}
            self._last = replace(self._last, **kept)


def measured_by(words: Sequence[Word], loads: Sequence[RouterLoad]) -> Measured:
    """All workers and routers together: the worst queue, as blocks are spread the mean of them, and the mean over
    routers, by their requests, of the time to first token."""
    requests = sum(load.requests for load in loads)
    first = sum(load.requests * load.first_token_seconds for load in loads) / requests if requests else 0.0
    queues = [*(word.queue_seconds for word in words), *(load.queue_seconds for load in loads)]
    return Measured(
        queue_seconds=max(queues, default=0.0),
        kv_used=statistics.fmean(word.kv_used for word in words) if words else 0.0,
        first_token_seconds=first if requests >= FEWEST_REQUESTS else 0.0,
    )


def members(states: Iterable[GroupState]) -> list[str]:
    """Workers of groups that serve."""
    return [hand.name for s in states if s.phase in (Phase.READY, Phase.CHANGING) for hand in s.members]


def unheard(words: Sequence[Word | None], loads: Sequence[RouterLoad]) -> str:
    """Who does not say what it feels, in words; empty: everybody does."""
    if not loads:
        return "no router says its load"
    return "a worker has not spoken yet" if None in words else ""


def moving(states: Iterable[GroupState]) -> str:
    """Which group is on its way to what is wanted, in words; empty: none."""
    for state in states:
        if (how := _MOVING.get(state.phase)) is not None:
            return f"group {state.group} {how}"
    return ""


def could_not_be_had(groups: int, states: Iterable[GroupState]) -> str:
    """Why the last of the groups is not there, empty when it is: it is the one that is given up."""
    for state in states:
        if state.group == f"g{groups - 1}" and state.phase is Phase.FAILED:
            return f"group {state.group} could not be had: {state.reason}"
    return ""

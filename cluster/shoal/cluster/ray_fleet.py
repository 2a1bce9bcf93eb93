"""Workers as Ray actors: detached, named, restarted by nobody but the controller, one detached placement group each.

Nothing is called per token. What a call raises in a worker comes back as one line: its kind and its message.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
from typing import Any

import ray
import structlog
from ray.actor import ActorClass, ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.cluster.errors import StartError
from shoal.cluster.fleet import FleetError, Found, obstacle_behind
from shoal.cluster.group_state import Obstacle
from shoal.cluster.topology import PLACES, Need, listen_hosts
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.faults import Fault
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts

log = structlog.get_logger()

ENTER_TIMEOUT = 20.0
"""Seconds after which a worker that was told to change epoch is taken to hang."""

STOP_TIMEOUT = 10.0
"""Seconds beyond its grace that a worker may take to end by itself."""

_LONGEST_PAUSE = 0.5  # seconds between two looks at a place that is not there yet

LOOK_TIMEOUT = 10.0
"""Seconds for a worker of an earlier controller to say what it is."""


class RayFleet:
    """Implements `fleet.Fleet`. `home` is the address of the node that routers and the controller run on.

    It keeps nothing that could not be found again by a worker's name: actor and placement group have it too.
    """

    def __init__(
        self, actor_class: type, config: WorkerConfig, need: Need, home: str, insecure: bool, place_timeout: float
    ) -> None:
        self._actor_class: ActorClass[Any] = ray.remote(actor_class)
        self._config = config
        self._need = need
        self._home = home
        self._insecure = insecure
        self._place_timeout = place_timeout
        self._actors: dict[str, ActorHandle[Any]] = {}

    async def hire(self, group: str, name: str) -> WorkerFacts:
        """A detached placement group, a detached actor in it, both of that name."""
        place = await asyncio.to_thread(placement_group, [self._need.bundle], name=name, lifetime="detached")
        if not await _made(place, self._place_timeout):
            await asyncio.to_thread(remove_placement_group, place)
            raise FleetError(f"no place: {self._need.bundle} must be free on one Ray node")
        node = await asyncio.to_thread(_node_of, place)
        try:
            (host,) = listen_hosts([node], self._home, self._insecure)
        except StartError as error:
            raise FleetError(str(error)) from error
        config = dataclasses.replace(self._config, worker_id=name, group=group, host=host)
        actor = self._actor_class.options(
            name=name,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=16,  # a newer epoch must get through while an older one waits for members that are gone
            num_cpus=self._need.cpus,
            num_gpus=self._need.gpus,
            resources={PLACES: self._need.places} if self._need.places else None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place),
        ).remote(config)
        assert isinstance(actor, ActorHandle), actor
        self._actors[name] = actor
        facts: WorkerFacts = await self._call(actor.prepare.remote())
        return facts

    async def stage(self, name: str, spec: GroupSpec, patient: bool) -> None:
        """Takes as long as reading takes."""
        await self._call((await self._actor(name)).stage.remote(spec, patient))

    async def enter(self, name: str, spec: GroupSpec, together: bool) -> EpochReport:
        """Everything was read before, so that a worker which does not answer soon hangs."""
        call = self._call((await self._actor(name)).reconfigure.remote(spec, together))
        try:
            report: EpochReport = await asyncio.wait_for(call, ENTER_TIMEOUT)
        except TimeoutError:
            raise FleetError(f"did not enter epoch {spec.epoch} within {ENTER_TIMEOUT:g} s", Obstacle.HUNG) from None
        return report

    async def drain(self, name: str, wanted: bool) -> None:
        """One call."""
        await self._call((await self._actor(name)).drain.remote(wanted))

    async def inject(self, name: str, fault: Fault, seconds: float, amount: float) -> None:
        """Break the worker's exchange on purpose."""
        await self._call((await self._actor(name)).inject.remote(fault, seconds, amount))

    async def kill(self, name: str, facts: WorkerFacts | None) -> None:
        """By signal where the process is on this machine: Ray asks a process to end itself, which a stopped one never
        does."""
        if facts is not None and facts.node_ip in ("127.0.0.1", self._home):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(facts.pid, signal.SIGKILL)
        self._actors.pop(name, None)
        await asyncio.to_thread(_remove, name)

    async def dismiss(self, name: str, grace: float) -> None:
        """Ask, then kill."""
        try:
            actor = await self._actor(name)
            await asyncio.wait_for(self._call(actor.stop.remote(grace)), grace + STOP_TIMEOUT)
        except (FleetError, TimeoutError) as error:
            log.debug("a worker did not stop by itself", worker=name, error=str(error))
        await self.kill(name, None)

    async def groups(self) -> list[str]:
        """By the same names."""
        return sorted({name.rpartition("-")[0] for name in await asyncio.to_thread(_names_of, r"g\d+")})

    async def survey(self, group: str) -> list[Found]:
        """By the names of actors and of placement groups."""
        names = await asyncio.to_thread(_names_of, re.escape(group))
        return list(await asyncio.gather(*(self._look(name) for name in names)))

    async def _look(self, name: str) -> Found:
        try:
            actor = await self._actor(name)
            facts, spec, epoch = await asyncio.wait_for(self._call(actor.describe.remote()), LOOK_TIMEOUT)
        except (FleetError, TimeoutError):
            return Found(name, None, None)
        return Found(name, facts, spec, epoch)

    async def _actor(self, name: str) -> ActorHandle[Any]:
        if name not in self._actors:
            try:
                self._actors[name] = await asyncio.to_thread(ray.get_actor, name)
            except ValueError as error:
                raise FleetError(f"there is no actor {name}") from error
        return self._actors[name]

    async def _call(self, ref: ray.ObjectRef[Any]) -> Any:
        try:
            return await ref
        except RayError as error:
            raise FleetError(one_line(error), obstacle_of(error)) from error


def obstacle_of(error: RayError) -> Obstacle:
    """What kind of refusal a worker's exception is."""
    return obstacle_behind(error.cause if isinstance(error, RayTaskError) else error)


def _names_of(groups: str) -> list[str]:
    """Of workers whose group has a name of this pattern."""
    places = placement_group_table()
    names = {place["name"] for place in places.values() if place["state"] != "REMOVED"}
    names |= set(ray.util.list_named_actors())
    return sorted(name for name in names if re.fullmatch(groups + r"-\d+", name))


def _remove(name: str) -> None:
    with contextlib.suppress(ValueError, RayError):
        ray.kill(ray.get_actor(name), no_restart=True)
    with contextlib.suppress(ValueError, RayError):
        remove_placement_group(get_placement_group(name))


def one_line(error: RayError | GetTimeoutError) -> str:
    """What happened in the worker, without the two stack traces that Ray wraps around it."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}" if cause is not None else _last_line(str(error))
    text = str(error)
    if isinstance(error, RayActorError) and "creation task" not in text:
        detail = re.search(r"exit detail: (.*?)\.?(?: Some common causes|$)", text, re.MULTILINE)
        return "its process died: " + (detail[1] if detail else _last_line(text))
    return _last_line(text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def node_addresses() -> dict[str, str]:
    """Address of every living node by its id."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # ray publishes no type for it
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}


async def _made(place: PlacementGroup, patience: float) -> bool:
    """Whether it is there within `patience` seconds. Asked again and again: a wait of Ray's own would keep a thread.
    There are few, and where nodes are minutes away whoever is to be killed or looked at would wait for one."""
    clock = asyncio.get_running_loop().time
    give_up, pause = clock() + patience, 0.02
    while (await asyncio.to_thread(placement_group_table, place))["state"] != "CREATED":
        if clock() > give_up:
            return False
        await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 1.5)
    return True


def _node_of(place: PlacementGroup) -> str:
    """Address of the node that a place is on."""
    return node_addresses()[placement_group_table(place)["bundles_to_node_id"][0]]

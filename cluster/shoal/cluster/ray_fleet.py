"""Workers as Ray actors: detached, named, restarted by nobody but the controller, one detached placement group each.

Nothing is called per token. What a call raises in a worker comes back as one line: its kind and its message.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
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

from shoal.cluster.controller import FleetError
from shoal.cluster.errors import StartError
from shoal.cluster.topology import Need, listen_hosts
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts

log = structlog.get_logger()

PROBE_TIMEOUT = 5.0
"""Seconds after which a status call is given up; the worker may just be busy."""


class RayFleet:
    """Implements `controller.Fleet`. `home` is the address of the node that routers run on."""

    def __init__(
        self, actor_class: type, config: WorkerConfig, need: Need, home: str, insecure: bool, place_timeout: float
    ) -> None:
        self._actor_class: ActorClass[Any] = ray.remote(actor_class)
        self._config = config
        self._need = need
        self._home = home
        self._insecure = insecure
        self._place_timeout = place_timeout
        self._places: dict[str, list[PlacementGroup]] = {}
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._actors: dict[tuple[str, int], ActorHandle[Any]] = {}

    async def reserve(self, group: str, ep_size: int) -> None:
        """All placement groups are asked for at once and waited for together."""
        await asyncio.to_thread(self._forget_earlier_life, group)
        places = [
            placement_group([self._need.bundle], name=place_name(group, rank), lifetime="detached")
            for rank in range(ep_size)
        ]
        self._places[group] = places
        there = await asyncio.gather(*(asyncio.to_thread(place.wait, self._place_timeout) for place in places))
        if not all(there):
            missing = [str(rank) for rank, ok in enumerate(there) if not ok]
            raise FleetError(
                f"no place for rank {', '.join(missing)}: each needs {self._need.bundle} free on one Ray node"
            )
        nodes = await asyncio.to_thread(_nodes_of, places)
        try:
            self._hosts[group] = listen_hosts(nodes, self._home, self._insecure)
        except StartError as error:
            raise FleetError(str(error)) from error

    async def prepare(self, group: str, rank: int) -> WorkerFacts:
        """Create the actor in its place."""
        name = place_name(group, rank)
        config = dataclasses.replace(self._config, worker_id=name, group=group, host=self._hosts[group][rank])
        actor = self._actor_class.options(
            name=name,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=4,  # a status call must not wait behind a long prepare or join
            num_cpus=self._need.cpus,
            num_gpus=self._need.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._places[group][rank]),
        ).remote(config)
        assert isinstance(actor, ActorHandle), actor
        self._actors[group, rank] = actor
        facts: WorkerFacts = await self._call(actor.prepare.remote())
        return facts

    async def join(self, group: str, rank: int, spec: GroupSpec) -> EpochReport:
        """Raises FleetError when a peer or an expert is missing."""
        report: EpochReport = await self._call(self._actors[group, rank].reconfigure.remote(spec, True))
        return report

    async def probe(self, group: str, rank: int) -> None:
        """One status call; a late answer proves nothing."""
        with contextlib.suppress(TimeoutError):
            status = await asyncio.wait_for(self._call(self._actors[group, rank].status.remote()), PROBE_TIMEOUT)
            if not status["ready"]:
                raise FleetError(f"serves no more: {status.get('failure') or 'no reason given'}")

    async def release(self, group: str, grace: float) -> None:
        """All workers stop side by side: a rank with requests still needs its peers for its steps."""
        actors = [self._actors.pop(key) for key in [key for key in self._actors if key[0] == group]]
        stops = [asyncio.wait_for(self._call(actor.stop.remote(grace)), grace + 15.0) for actor in actors]
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.warning("a worker did not stop by itself", group=group, error=str(outcome))
        await asyncio.to_thread(self._remove, actors, self._places.pop(group, []))

    async def _call(self, ref: ray.ObjectRef[Any]) -> Any:
        try:
            return await ref
        except RayError as error:
            raise FleetError(one_line(error)) from error

    def _forget_earlier_life(self, group: str) -> None:
        """A controller that died left its workers and places behind, under the names that are needed now."""
        actors = []
        places = []
        for name in ray.util.list_named_actors():
            if name.startswith(f"{group}-"):
                actors.append(ray.get_actor(name))
                with contextlib.suppress(ValueError):
                    places.append(get_placement_group(name))
        self._remove(actors, places)

    @staticmethod
    def _remove(actors: list[ActorHandle[Any]], places: list[PlacementGroup]) -> None:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        for place in places:
            remove_placement_group(place)


def place_name(group: str, rank: int) -> str:
    """Name of a rank's actor, worker and placement group alike."""
    return f"{group}-{rank}"


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


def _nodes_of(places: list[PlacementGroup]) -> list[str]:
    """Address of the node that each place is on."""
    addresses = node_addresses()
    tables = [placement_group_table(place) for place in places]
    return [addresses[table["bundles_to_node_id"][0]] for table in tables]

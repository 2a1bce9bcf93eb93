"""The detached, named Ray actor that runs a `Controller`: thin, everything it does is tested without Ray.

    actor = ray.remote(ControllerActor).options(name=NAME, lifetime="detached", num_cpus=0).remote(declared)
    ray.get(actor.start.remote())            # returns at once; groups come up by themselves
    ray.get(actor.status.remote())           # {"groups": [{"group": "g0", "phase": "ready", ...}]}
    ray.get(actor.stop.remote(grace=10.0))   # returns when every worker is gone

When it dies, workers and routers go on serving; nobody notices the next death or changes an epoch until it is back.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from dataclasses import dataclass
from typing import Any

from shoal.cluster import logs
from shoal.cluster.controller import Controller
from shoal.cluster.lifecycle import GroupState
from shoal.cluster.ray_fleet import RayFleet
from shoal.cluster.registry_writer import RedisRegistry
from shoal.cluster.topology import Need
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.rendezvous import RendezvousServer
from shoal.workers.orphan import end_with_parent

NAME = "shoal-controller"


@dataclass(frozen=True, slots=True)
class Declared:
    """What shall run. `home` is the address of the node that routers and this controller run on."""

    worker_class: str
    """`module:class` of the actor, such as "shoal.workers.actor:WorkerActor"."""
    worker: WorkerConfig
    need: Need
    groups: tuple[str, ...]
    ep_size: int
    redis_url: str
    home: str
    insecure: bool
    start_timeout: float


class ControllerActor:
    """Made a Ray actor by `launch`."""

    def __init__(self, declared: Declared) -> None:
        end_with_parent()
        logs.configure("info", "json")  # Ray keeps what it prints in a file of its own
        self._declared = declared
        self._controller: Controller | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to bring the groups up. Raises RegistryAwayError when Redis does not answer."""
        d = self._declared
        registry = RedisRegistry(d.redis_url)
        host = d.home if d.insecure else "127.0.0.1"
        self._store = RendezvousServer(host)
        deadline = time.monotonic() + d.start_timeout
        states = [
            GroupState(group, d.ep_size, await registry.last_epoch(group) + 1, host, self._store.port, deadline)
            for group in d.groups
        ]
        fleet = RayFleet(_load(d.worker_class), d.worker, d.need, d.home, d.insecure, d.start_timeout)
        self._controller = Controller(fleet, registry, states)
        self._running = asyncio.create_task(self._controller.run())

    async def status(self) -> dict[str, Any]:
        """Every group with its ranks, as plain values."""
        return self._controller.status() if self._controller is not None else {"groups": []}

    async def stop(self, grace: float = 0.0) -> None:
        """Stop every group, after `grace` seconds for running requests, and return when all workers are gone."""
        if self._controller is not None:
            await self._controller.stop(grace)


def _load(path: str) -> type:
    module, _, name = path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found

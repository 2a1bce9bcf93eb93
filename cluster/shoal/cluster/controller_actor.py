"""The detached, named Ray actor that runs a `Controller`: thin, everything it does is tested without Ray.

    actor = ray.remote(ControllerActor).options(name=NAME, lifetime="detached", num_cpus=0).remote(declared)
    ray.get(actor.start.remote())            # returns once it began; groups come up by themselves
    ray.get(actor.status.remote())           # {"groups": [{"group": "g0", "phase": "ready", ...}]}
    ray.get(actor.stop.remote(grace=10.0))   # returns when every worker is gone

When it dies, workers and routers go on serving. Ray starts it again, and it takes over what it finds: workers by their
names, their epoch from themselves, what is desired from Redis.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from shoal.cluster.admin import AdminServer
from shoal.cluster.autoscale import AutoscalePolicy
from shoal.cluster.autoscaler import Autoscaler
from shoal.cluster.balancer import Balancer
from shoal.cluster.controller import Controller
from shoal.cluster.desired_file import follow, said_by
from shoal.cluster.group_state import GroupState, Policy
from shoal.cluster.ray_fleet import RayFleet
from shoal.cluster.registry_writer import RedisRegistry, RegistryAwayError
from shoal.cluster.saboteur import Saboteur
from shoal.cluster.topology import Need
from shoal.cluster.worker_watch import WorkerWatch
from shoal.router.audit.config import AuditConfig
from shoal.wire import logs
from shoal.wire.registry import Desired
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.rendezvous import RendezvousServer
from shoal.workers.orphan import end_with_parent

log = structlog.get_logger()

NAME = "shoal-controller"

_RETRY = 0.5  # seconds between two attempts at a Redis that is away

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declared:
    """What shall run. `home` is the address of the node that routers and this controller run on."""

    worker_class: str
    """`module:class` of the actor, such as "shoal.workers.actor:WorkerActor"."""
    worker: WorkerConfig
    need: Need
    desired: Desired
    redis_url: str
    home: str
    insecure: bool
    policy: Policy
    heartbeat_timeout: float
    stop_grace: float
    expert_copies: int = 0
    rebalance_period: float = 0.0
    chaos: bool = False
    admin_port: int = 0
    autoscale: AutoscalePolicy = field(default_factory=AutoscalePolicy)
    audit: AuditConfig = field(default_factory=AuditConfig)
    """Where this node keeps what operators change."""
    desired_file: str = ""
    """A file on this node that is watched for other sizes; empty: none."""
    again: bool = False
    """It follows a controller that died with its Ray: what is desired is what Redis knows."""


class ControllerActor:
    """Made a Ray actor by `launch`. Its event loop is a thread's, so that it begins by itself when Ray restarts it."""

    def __init__(self, declared: Declared) -> None:
        end_with_parent()
        # Ray keeps what it prints in a file of its own, or in a container lets it through.
        logs.configure(declared.worker.log_level, role="controller")
        self._declared = declared
        self._controller: Controller | None = None
        self._running: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="controller", daemon=True).start()
        self._begun = asyncio.run_coroutine_threadsafe(self._begin(declared.again or _is_restart()), self._loop)

    def start(self) -> None:
        """Wait until it has begun to bring the groups up. Raises RegistryAwayError when Redis does not answer."""
        self._begun.result()

    def status(self) -> dict[str, Any]:
        """Every group with its ranks, as plain values."""
        return self._controller.status() if self._controller is not None else {"groups": []}

    def stop(self, grace: float = 0.0) -> None:
        """Stop every group, after `grace` seconds for running requests, and return when all workers are gone."""
        if self._controller is not None:
            self._call(self._controller.stop(grace))

    def pid(self) -> int:
        """Its process."""
        import os

        return os.getpid()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self, again: bool) -> None:
        d = self._declared
        registry = RedisRegistry(d.redis_url)
        desired = d.desired
        while True:
            try:
                if again:
                    desired = await registry.desired() or d.desired
                else:
                    await registry.forget_desired()
                if not d.autoscale.enabled:
                    await registry.forget_autoscale()
                epochs = [await registry.last_epoch(f"g{number}") for number in range(desired.groups)]
                break
            except RegistryAwayError:
                if not again:
                    raise
                await asyncio.sleep(_RETRY)
        deadline = time.monotonic() + d.policy.start_timeout
        states = [
            GroupState(f"g{number}", desired.ep_size, epoch, deadline, d.policy) for number, epoch in enumerate(epochs)
        ]
        fleet = RayFleet(_load(d.worker_class), d.worker, d.need, d.home, d.insecure, d.policy.start_timeout)
        host = d.policy.store_host
        self._controller = Controller(
            fleet,
            registry,
            WorkerWatch(d.worker.tls),
            lambda: RendezvousServer(host),
            states,
            heartbeat_timeout=d.heartbeat_timeout,
        )
        self._running = asyncio.create_task(self._controller.run())
        balancer = Balancer(self._controller, d.expert_copies, d.worker.tls)
        if d.rebalance_period:
            self._balancing = asyncio.create_task(balancer.run(d.rebalance_period))
        saboteur = Saboteur(self._controller, fleet) if d.chaos else None
        self._admin = AdminServer(
            self._controller, registry, balancer, saboteur, d.policy, desired, d.stop_grace, d.worker.tls, d.audit
        )
        await self._admin.start(host, d.admin_port)
        if d.autoscale.enabled:
            admin = self._admin
            autoscaler = Autoscaler(d.autoscale, self._controller, registry, lambda: admin.desired, admin.want)
            self._autoscaling = asyncio.create_task(autoscaler.run())
        if d.desired_file:
            # After a restart the file counts as acted on: a later `shoal scale` must not be undone.
            seen = said_by(Path(d.desired_file), d.desired) if again else d.desired
            self._following = asyncio.create_task(follow(Path(d.desired_file), seen, self._admin.want))
        log.info("controller began", again=again, ep_size=desired.ep_size, groups=desired.groups)


def _is_restart() -> bool:
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _load(path: str) -> type:
    module, _, name = path.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found

"""The controller as the process that started it sees it: a Ray actor to start, ask, stop, and at worst to kill."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
import structlog
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import get_placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.cluster.controller_actor import NAME, ControllerActor, Declared
from shoal.cluster.errors import StartError
from shoal.cluster.ray_fleet import one_line

log = structlog.get_logger()

_PATIENCE = 30.0  # seconds for an answer of the controller, which never waits for anything itself


class ControllerHandle:
    """One running controller."""

    def __init__(self, declared: Declared, node_id: str) -> None:
        """Start the actor on this node. Raises StartError when the Ray namespace has one already.

        On this node, because the embedded Redis and a one-machine rendezvous are reached over loopback.
        """
        options = {
            "name": NAME,
            "lifetime": "detached",
            "num_cpus": 0,
            "max_restarts": -1,  # it takes over the cluster as it finds it
            "max_concurrency": 8,  # a status must not wait behind a stop
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        try:
            self._actor: Any = ray.remote(ControllerActor).options(**options).remote(declared)
        except ValueError as error:
            raise StartError(
                "a cluster already runs in this Ray namespace: stop it where it was started, or set cluster.namespace"
            ) from error

    @staticmethod
    def exists() -> bool:
        """Whether this Ray namespace has a controller."""
        return NAME in ray.util.list_named_actors()

    @staticmethod
    def require_answer() -> None:
        """Raise StartError unless the controller of this Ray namespace answers: one whose node is gone may be listed
        for a while."""
        try:
            ControllerHandle._call(ray.get_actor(NAME).pid.remote(), "the controller does not answer", _PATIENCE)
        except ValueError as error:
            raise StartError("the controller is gone") from error

    def begin(self, timeout: float) -> None:
        """Let it bring the groups up. Raises StartError."""
        self._call(self._actor.start.remote(), "the controller did not start", timeout)

    def status(self) -> dict[str, Any]:
        """Every group with its ranks. Raises StartError when it is gone."""
        status: dict[str, Any] = self._call(self._actor.status.remote(), "the controller is gone", _PATIENCE)
        return status

    def stop(self) -> None:
        """Stop every worker, then the controller."""
        try:
            self._call(self._actor.stop.remote(0.0), "the workers were not stopped in order", _PATIENCE)
        except StartError as error:
            log.warning("workers are killed", why=str(error))
            self.kill()
        with contextlib.suppress(RayError):
            ray.kill(self._actor)

    def kill(self) -> None:
        """End all actors and free their places now: on a Ray that is not ours they would outlive us."""
        with contextlib.suppress(RayError, ValueError):
            for name in ray.util.list_named_actors():
                ray.kill(ray.get_actor(name))
                with contextlib.suppress(ValueError):
                    remove_placement_group(get_placement_group(name))

    @staticmethod
    def _call(ref: Any, otherwise: str, timeout: float) -> Any:
        try:
            return ray.get(ref, timeout=timeout)
        except (RayError, GetTimeoutError) as error:
            raise StartError(f"{otherwise}: {one_line(error)}") from error

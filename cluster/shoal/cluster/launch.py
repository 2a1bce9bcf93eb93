"""Starts and stops a whole cluster from one process: Redis, Ray, the controller with its workers, a router.

    cluster = LocalCluster(settings, say=print)
    conduct(cluster, lambda run: print(run.router))   # start, do something with it, stop, whatever happens

What was started is stopped in reverse order, and everything that is left below this process is killed at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from shoal.cluster import ray_session, runfile, topology
from shoal.cluster.autoscale import AutoscalePolicy
from shoal.cluster.config import ClusterConfig, Settings
from shoal.cluster.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from shoal.cluster.errors import ConfigError, StartError, UnhealthyError
from shoal.cluster.gcs_keeper import GcsKeeper
from shoal.cluster.group_state import Policy
from shoal.cluster.own_access import OwnAccess
from shoal.cluster.processes import Interrupted, adopt_orphans, descendants, interruptible, kill_descendants
from shoal.cluster.ray_session import RaySession
from shoal.cluster.router_process import Listening, RouterProcess
from shoal.cluster.runfile import RunFile
from shoal.wire.registry import Desired
from shoal.workers.config import WorkerConfig

if TYPE_CHECKING:  # importing these imports ray, which must first see the environment that ray_session sets
    from shoal.cluster.controller_actor import Declared
    from shoal.cluster.controller_handle import ControllerHandle

log = structlog.get_logger()

WORKER_CLASS = "shoal.workers.actor:WorkerActor"
_ROUTER_DEATHS = 5  # within a minute; with one more it is not worth starting again
_POLL = 0.1  # seconds between two looks while something starts
_REDIS_PATIENCE = 5.0  # seconds that a Redis which was configured may take to answer


class LocalCluster:
    """One cluster started from this process. `start`, `stop` and `kill` belong to the main thread."""

    def __init__(
        self, settings: Settings, say: Callable[[str], None] = lambda _: None, router_log: Path | None = None
    ) -> None:
        """`say` is told each step in words; the router's output goes to `router_log`, by default where ours goes.

        Raises ConfigError.
        """
        self.config: ClusterConfig = settings.cluster()
        if not self.config.model:
            raise ConfigError("cluster.model is missing: name a checkpoint directory, for instance with --model DIR")
        self._model = str(Path(self.config.model).absolute())
        self._worker = settings.worker(model=self._model)
        self._autoscale, self._audit = settings.autoscale(), settings.part("audit")
        state_dir = Path(self.config.state_dir).absolute()
        self._state_dir = state_dir
        drain = {} if settings.given("router.drain_seconds") else {"drain_seconds": self.config.stop_grace}
        self._router_config = settings.router(
            model_dir=self._model, redis_url=self.config.redis_url, ready_file=str(state_dir / "router.json"), **drain
        )
        self._access = OwnAccess.of(settings)
        self._say = say
        self._router_log = router_log
        self._undo: list[Callable[[], None]] = []
        self._not_ours: list[int] = []
        self._owned = contextlib.ExitStack()
        self._redis: EmbeddedRedis | None = None
        self._session: RaySession | None = None
        self._gcs: GcsKeeper | None = None
        self._router: RouterProcess | None = None
        self._listening: Listening | None = None
        self._router_deaths: list[float] = []
        self._controller: ControllerHandle | None = None
        self._deadline = 0.0

    # -- up ---------------------------------------------------------------------------------------------------------

    def start(self) -> RunFile:
        """Start everything; returns when a request can be served. Raises ClusterError; call `stop` in any case."""
        started = time.time()
        self._deadline = time.monotonic() + self.config.start_timeout
        self._not_ours = [process.pid for process in descendants()]
        adopt_orphans()
        self._owned.enter_context(runfile.owned(self._state_dir))
        self._check_model()
        redis_url = self._start_redis()
        self._undo.append(self._stop_ray)
        session = self._connect_ray()
        self._undo.append(self._stop_controller)
        self._start_controller(session, redis_url)
        self._router_config = dataclasses.replace(self._router_config, redis_url=redis_url)
        self._router = RouterProcess(self._router_config, self._router_log)
        self._undo.append(self._stop_router)
        self._await_groups()
        self._listening = self._await_router()
        return self._write_run(session, started)

    def _write_run(self, session: RaySession, started: float) -> RunFile:
        listening = self._listening
        assert listening is not None, "the router listens"
        run = RunFile(
            pid=os.getpid(),
            started=started,
            router=listening.grpc,
            http=listening.http,
            metrics=listening.metrics,
            redis_url=self._router_config.redis_url,
            ray_address=session.address,
            model=self._model,
            groups=self.config.group_names,
            logs=session.logs,
            chaos=self.config.chaos,
        )
        run.write(self._state_dir)
        return run

    def _check_model(self) -> None:
        """A bad checkpoint is refused here, in a second, before anything was started."""
        from shoal.workers.checkpoint import CheckpointError, open_checkpoint

        try:
            with open_checkpoint(self._model) as checkpoint:
                experts = checkpoint.config.num_experts
        except CheckpointError as error:
            raise StartError(str(error)) from error
        if self.config.ep_size > experts:
            raise ConfigError(f"cluster.ep_size is {self.config.ep_size}, but the model has only {experts} experts")

    def _start_redis(self) -> str:
        if self.config.redis_url:
            _ping(self.config.redis_url)
            return self.config.redis_url
        self._say("starting Redis")
        self._redis = EmbeddedRedis(self._state_dir / "redis", on_restart=_redis_restarted)
        try:
            url = self._redis.start()
        except EmbeddedRedisError as error:
            raise StartError(str(error)) from error
        self._undo.append(self._redis.stop)
        return url

    def _connect_ray(self) -> RaySession:
        self._say(f"connecting to Ray at {self.config.ray_address}" if self.config.ray_address else "starting Ray")
        self._session = ray_session.connect(self.config.ray_address, self.config.namespace, self._state_dir)
        if self._session.gcs:
            self._gcs = GcsKeeper(self._session.gcs, self._session.address, _gcs_restarted)
        return self._session

    def _start_controller(self, session: RaySession, redis_url: str, again: bool = False) -> None:
        from shoal.cluster.controller_handle import ControllerHandle

        left = max(1.0, self._deadline - time.monotonic())
        declared = declare(self.config, self._worker, session, redis_url, left, self._autoscale)
        declared = dataclasses.replace(declared, again=again, audit=self._audit)
        topology.require_room(declared.need, self.config.ranks, session.resources)
        self._say(f"starting {self.config.ranks} workers on {declared.worker.device.upper()}")
        self._controller = ControllerHandle(declared, session.node_id)
        self._controller.begin(left)

    def _await_groups(self) -> None:
        seen: dict[str, str] = {}
        while True:
            groups = self.status()["groups"]
            for group in groups:
                if seen.get(group["group"]) != group["phase"]:
                    seen[group["group"]] = group["phase"]
                    self._say(f"group {group['group']}: {group['phase']}")
                if group["phase"] == "failed":
                    raise StartError(f"group {group['group']} did not start: {group['reason']}")
            if groups and all(group["phase"] == "ready" for group in groups):
                return
            assert self._router is not None, "the router is started before its workers are ready"
            self._router.listening()  # raises when it ended
            time.sleep(_POLL)

    def _await_router(self) -> Listening:
        from shoal.cluster.client import is_serving

        assert self._router is not None, "the router was not started"
        self._say("waiting for the router")
        while time.monotonic() < self._deadline:
            listening = self._router.listening()
            if listening is not None and is_serving(listening.grpc, timeout=2.0, access=self._access):
                return listening
            time.sleep(_POLL)
        raise StartError(f"the router was not ready within {self.config.start_timeout:g} s")

    # -- running ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Start again what died and does not come back by itself. Raises UnhealthyError when a router dies again and
        again, StartError when Ray cannot be started any more."""
        assert self._router is not None, "check() comes after start()"
        assert self._session is not None, "check() comes after start()"
        try:
            self._router.listening()
        except StartError as error:
            self._restart_router(error)
        if not self._session.lives():
            self._restart_ray()

    def _restart_router(self, error: StartError) -> None:
        """At the same ports: clients come back to it, and go on."""
        now = time.monotonic()
        self._router_deaths = [then for then in self._router_deaths if now - then < 60.0] + [now]
        if len(self._router_deaths) > _ROUTER_DEATHS:
            raise UnhealthyError(str(error)) from error
        log.warning("the router died and is started again", why=str(error))
        assert self._listening is not None, "it listened before"
        self._router = RouterProcess(self._listening.again(self._router_config), self._router_log)

    def _restart_ray(self) -> None:
        """Its workers died with it. The router lives, and its streams wait for workers that can go on with them."""
        log.warning("Ray died, and all workers with it: all start anew")
        started = runfile.read(self._state_dir).started
        self._stop_ray()
        kill_descendants(keep=[*self._not_ours, *self._beside_ray()])
        self._deadline = time.monotonic() + self.config.start_timeout
        session = self._connect_ray()
        self._start_controller(session, self._router_config.redis_url, again=True)
        self._await_groups()
        self._write_run(session, started)

    def _beside_ray(self) -> list[int]:
        """Processes of ours that do not belong to Ray."""
        pids = [self._router.pid if self._router else None, self._redis.pid if self._redis else None]
        return [pid for pid in pids if pid is not None]

    def status(self) -> dict[str, Any]:
        """What the controller knows. Raises StartError when it is gone."""
        assert self._controller is not None, "status() comes after start()"
        return self._controller.status()

    # -- down ---------------------------------------------------------------------------------------------------------

    def _stop_ray(self) -> None:
        if self._gcs is not None:
            self._gcs.stop()
        ray_session.disconnect()

    def _stop_controller(self) -> None:
        if self._controller is not None:
            self._controller.stop()

    def _stop_router(self) -> None:
        if self._router is not None:
            self._router.stop(self._router_config.drain_seconds + 5.0)

    def stop(self) -> None:
        """Stop everything in reverse order; what is left below this process is killed. Safe to repeat.

        An exception in the middle, such as Interrupted, leaves the rest to a second call or to `kill`.
        """
        while self._undo:
            try:
                self._undo[-1]()
            except Exception:
                log.exception("a part did not stop in order")
            self._undo.pop()
        if left := kill_descendants(keep=self._not_ours):
            log.debug("processes had to be killed", pids=left)
        self._owned.close()

    def kill(self) -> None:
        """Stop everything now. This process cannot use Ray any more and had better end: `os._exit`."""
        if self._controller is not None and self.config.ray_address:
            self._controller.kill()
        kill_descendants(keep=self._not_ours)
        with contextlib.suppress(OSError):
            self._owned.close()


def conduct(cluster: LocalCluster, body: Callable[[RunFile], None], stopping: Callable[[str], None]) -> int | None:
    """Start the cluster, run `body`, stop the cluster: the number of the signal that cut it short, None without one.

    `stopping` is told why before the orderly stop. A second signal ends the process at once, its children first.
    """
    signalled: int | None = None
    with interruptible(cluster.kill) as caught:
        try:
            try:
                body(cluster.start())
                stopping("done")
            except Interrupted as asked:
                caught()
                signalled = asked.number
                stopping(f"{asked}: stopping; once more stops at once")
            finally:
                cluster.stop()
        except Interrupted as again:
            caught()
            print("shoal: stopped at once", file=sys.stderr, flush=True)
            cluster.kill()
            # Not sys.exit: Ray's own exit handlers would wait for processes that are gone.
            os._exit(128 + again.number)
    return signalled


def declare(
    config: ClusterConfig,
    worker: WorkerConfig,
    session: RaySession,
    redis_url: str,
    timeout: float,
    autoscale: AutoscalePolicy,
) -> Declared:
    """What a controller is told, on this Ray. A start that takes longer than `timeout` seconds has failed."""
    from shoal.cluster.controller_actor import Declared

    device = topology.resolve_device(worker.device, session.resources.get("GPU", 0.0))
    return Declared(
        worker_class=WORKER_CLASS,
        # Ray shows each worker its own GPU
        worker=dataclasses.replace(
            worker, device=device.partition(":")[0], chaos=config.chaos, log_level=config.log_level
        ),
        need=topology.need_of(device, worker.threads, session.local),
        desired=Desired(config.ep_size, config.groups),
        redis_url=redis_url,
        home=session.home,
        insecure=config.insecure,
        policy=Policy(
            store_host=session.home if config.insecure else "127.0.0.1",
            spares=config.spares,
            start_timeout=timeout,
            drain_timeout=config.drain_timeout,
        ),
        heartbeat_timeout=config.heartbeat_timeout,
        stop_grace=config.stop_grace,
        expert_copies=config.expert_copies,
        rebalance_period=config.rebalance_period,
        chaos=config.chaos,
        admin_port=config.admin_port,
        autoscale=autoscale,
    )


def _ping(url: str) -> None:
    import asyncio

    from shoal.router.store.connect import connect
    from shoal.router.store.ready import RedisNotReadyError, require_ready

    async def ask() -> None:
        client = connect(url)
        try:
            await require_ready(client, _REDIS_PATIENCE)
        finally:
            await client.aclose()

    try:
        asyncio.run(ask())
    except RedisNotReadyError as error:
        raise StartError(f"the Redis of cluster.redis_url cannot be used: {error}") from error


def _redis_restarted(pid: int, status: int) -> None:
    log.warning("the embedded Redis died and is started again", pid=pid, status=status)


def _gcs_restarted(pid: int) -> None:
    log.warning("Ray's control service died and is started again", pid=pid)

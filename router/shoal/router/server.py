"""The router as a process: everything put together, started, watched and stopped.

await run(RouterConfig(model_dir="…"))              serve until SIGTERM or SIGINT, then drain
python -m shoal.router --config router.json         the same; prints one JSON line once it listens
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shoal.proto.v1 import admin_pb2
from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from shoal.proto.v1.inference_pb2_grpc import (
    add_InferenceServiceServicer_to_server,
    add_SessionServiceServicer_to_server,
)
from shoal.router.admission import Admission
from shoal.router.config import RouterConfig
from shoal.router.errors import StartError
from shoal.router.fleet.membership import Membership
from shoal.router.fleet.migration import Bounds
from shoal.router.fleet.pool import WorkerPool
from shoal.router.fleet.worker_link import LinkSettings
from shoal.router.front import Front
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.render import Renderer
from shoal.router.http import app as http
from shoal.router.http.gate import Gate
from shoal.router.http.listener import Listener
from shoal.router.inference.chat import Chat, ChatSettings
from shoal.router.inference.generate import Generator
from shoal.router.inference.models import Models
from shoal.router.inference.once import Once
from shoal.router.inference.opening import Openings
from shoal.router.inference.resume import Resumer
from shoal.router.inference.service import InferenceService
from shoal.router.load_teller import LoadTeller
from shoal.router.metrics import Metrics, MetricsServer
from shoal.router.operations import Operations
from shoal.router.protection import Protection
from shoal.router.redis_parts import RedisParts
from shoal.router.rim import Rim
from shoal.router.sessions.reservation import Patience
from shoal.router.sessions.service import SessionService, SessionSettings
from shoal.router.tokenizer import Tokenizer
from shoal.router.tools.runner import Toolbox, ToolRunner
from shoal.router.waiting_line import WaitingLine
from shoal.router.watch import Watch
from shoal.wire import logs
from shoal.wire.credentials import InsecureRefusedError, add_port, join_address, require_loopback_or
from shoal.wire.ending import ended
from shoal.wire.options import server_options
from shoal.wire.settings import SettingError
from shoal.wire.tls import TlsConfig, serving_credentials
from shoal.wire.tracing import Tracing

INFERENCE = api.DESCRIPTOR.services_by_name["InferenceService"].full_name
OPERATIONS = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
SESSIONS = api.DESCRIPTOR.services_by_name["SessionService"].full_name

_HEALTH_PERIOD = 0.2
_STALE_REGISTRY = 5.0  # seconds without an answer from Redis after which sessions are reported away

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a router listens. `metrics` and `http` are empty when it serves none."""

    address: str
    metrics: str
    router_id: str
    pid: int
    http: str = ""


class Router:
    """One router on the running event loop."""

    def __init__(self, config: RouterConfig, tokenizer: Tokenizer, tools: Sequence[ToolRunner] = ()) -> None:
        """Raises StartError when the vocabulary lacks Harmony's control tokens or the address needs TLS."""
        _require_closed(config)
        self._config = config
        self.metrics = Metrics()
        self.redis = RedisParts(config, self.metrics)
        settings = LinkSettings(
            config.router_id, tokenizer.hash, config.max_unread_tokens, config.accept_seconds, config.tls
        )
        bounds = Bounds(
            losses=config.migration_losses,
            seconds=config.migration_seconds,
            new_seconds=config.worker_wait_seconds,
        )
        self.pool = WorkerPool(settings, config.worker_wait_seconds, bounds=bounds, migrated=self.metrics.migrated)
        self.membership = Membership(
            self.pool.set_members, time.monotonic, fixed=config.workers, wanted_groups=config.groups
        )
        self.admission = Admission(config.max_running, config.max_waiting, time.monotonic, config.limits.tenant_share)
        control = ControlTokens.of(tokenizer.control)
        toolbox = Toolbox(tools)
        backend = self.redis.around(self.pool)
        chat = Chat(
            backend=backend,
            tokenizer=tokenizer,
            control=control,
            openings=Openings(
                renderer=Renderer(tokenizer, control),
                store=self.redis.sessions,
                toolbox=toolbox,
                ttl_seconds=config.session_ttl_seconds,
                max_ttl_seconds=config.max_session_ttl_seconds,
                today=_today,
                parallel_calls=config.parallel_tool_calls,
                max_session_bytes=config.max_session_bytes,
                patience=Patience(config.lease_seconds, config.session_patience_seconds),
            ),
            metrics=self.metrics,
            settings=ChatSettings(
                model=config.model,
                max_choices=config.max_choices,
                well_formed=config.well_formed,
                tool_rounds=config.tool_rounds,
                tool_seconds=config.tool_seconds,
            ),
            keeper=self.redis.keeper,
        )
        keeper = self.redis.keeper
        generator = Generator(backend, tokenizer, self.metrics, config.max_choices, config.model, keeper)
        models = Models(chat, self.pool, tokenizer, toolbox.names, time.time())
        self._protection = Protection.build(config, self.redis.client)
        room, first_token = WaitingLine(time.monotonic), WaitingLine(time.monotonic)
        self._watch = Watch(self.metrics, room, first_token, Tracing.of("shoal-router"))
        self._load = LoadTeller(config.router_id, room, first_token)
        resumer = Resumer(keeper, chat, generator)
        once = Once(self.redis.claims, resumer, config.journal_seconds, config.lease_seconds)
        front = Front(chat, generator, resumer, once, self._protection, self.admission, self._watch)
        service = InferenceService(front, models, config.max_request_seconds)
        gate = Gate(front, config.max_request_seconds)
        around = http.Surroundings(
            self._parts, lambda: models.served().models, self.redis.records, config.http_max_body_bytes
        )
        self._api = http.build(gate, around)
        self._http: Listener | None = None
        rim = Rim(self.metrics, config.max_request_seconds, self._protection)
        session_settings = SessionSettings(config.session_ttl_seconds, config.max_session_ttl_seconds, _today)
        sessions = SessionService(self.redis.sessions, session_settings, self.redis.journal)
        self._server = grpc.aio.server(interceptors=[rim], options=server_options())
        add_InferenceServiceServicer_to_server(service, self._server)
        add_SessionServiceServicer_to_server(sessions, self._server)
        operations = Operations(self.redis.client, config.tls, config.access.operators)
        add_AdminServiceServicer_to_server(operations, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (INFERENCE, SESSIONS, OPERATIONS, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._metrics_server: MetricsServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Listening:
        """Listen. Raises StartError when an address cannot be had."""
        config = self._config
        with _taken("port"):
            port = add_port(self._server, config.host, config.port, _credentials(config.tls))
        if config.metrics_port >= 0:
            with _taken("metrics_port"):
                self._metrics_server = MetricsServer(self.metrics, config.metrics_host, config.metrics_port)
        if config.http_port >= 0:
            with _taken("http_port"):
                self._http = Listener(self._api.application, config.http_host, config.http_port, config.tls)
        await self._protection.start(config, self._keep_running)
        self.metrics.in_flight.set_function(lambda: self.admission.running)
        self.metrics.queued.set_function(lambda: self.admission.waiting)
        self.metrics.queue_oldest.set_function(lambda: self._watch.line.oldest)
        self.metrics.workers.set_function(lambda: len(self.pool.eligible()))
        self.metrics.workers_known.set_function(lambda: self.pool.known)
        self.metrics.workers_connected.set_function(lambda: self.pool.connected)
        self.metrics.registry_age.set_function(lambda: self.membership.age)
        if self.redis.client is not None:
            self._keep_running("membership", self.membership.watch(self.redis.client, config.registry_poll))
            self._keep_running("load", self._load.run(self.redis.client))
        self.redis.start(self._keep_running)
        self._keep_running("health", self._report_health())
        await self._server.start()
        if self._http is not None:
            await self._http.start()
        metrics = join_address(config.metrics_host, self._metrics_server.port) if self._metrics_server else ""
        address, http_address = join_address(config.host, port), self._http.address if self._http is not None else ""
        listening = Listening(address, metrics, config.router_id, os.getpid(), http_address)
        _log.info("router_listening", address=address, http=http_address, metrics=metrics)
        return listening

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new requests, give running ones `grace` seconds (default: as configured), then let go of all."""
        await self._health.enter_graceful_shutdown()
        self.admission.stop()
        patience = self._config.drain_seconds if grace is None else grace
        http = self._http.stop(patience) if self._http else _nothing()
        await asyncio.gather(self._server.stop(patience), http, self._api.close(patience))
        await ended(self._tasks)
        await self.pool.close()
        await self._protection.close()
        await self.redis.close()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        await asyncio.to_thread(self._watch.tracing.close)

    def _keep_running(self, name: str, work: Coroutine[None, None, None]) -> None:
        """In the background until the router stops; its end before that is a mistake of ours and is logged."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                _log.error("background_task_ended", task=name, problem=repr(task.exception()))

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(ended)
        self._tasks.append(task)

    async def _report_health(self) -> None:
        """The process lives (""), can generate, can keep sessions."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", serving)
        while True:
            parts = self._parts()
            await self._health.set(INFERENCE, serving if parts["generate"] else not_serving)
            await self._health.set(SESSIONS, serving if parts["sessions"] else not_serving)
            await asyncio.sleep(_HEALTH_PERIOD)

    def _parts(self) -> dict[str, bool]:
        """Which parts serve."""
        keeps = self.redis.client is not None and self.membership.age < _STALE_REGISTRY
        return {"generate": bool(self.pool.eligible()) and not self.admission.stopping, "sessions": keeps}


def _require_closed(config: RouterConfig) -> None:
    """Off loopback: TLS and credentials, or `insecure`. Raises StartError naming the setting."""
    try:
        config.tls.check_files()
        for key in ("host", "http_host") if config.http_port >= 0 else ("host",):
            lacking = [] if config.tls.serves else ["encryption (tls.certificate, tls.key)"]
            lacking += [] if config.access.required else ["asking for credentials (access.required)"]
            if lacking:
                require_loopback_or(config.insecure, getattr(config, key), "the router", " and ".join(lacking))
    except SettingError as error:
        raise StartError(str(error)) from error
    except InsecureRefusedError as error:
        raise StartError(f"router.{key}: {error}") from error


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials | None:
    """What gRPC's clients are served with, None: in the clear."""
    if not tls.serves:
        return None
    return serving_credentials(tls.certificate, tls.key, tls.client_ca, required=bool(tls.client_ca))


@contextlib.contextmanager
def _taken(key: str) -> Iterator[None]:
    """An address that cannot be had is told by its setting."""
    try:
        yield
    except OSError as error:
        raise StartError(f"router.{key}: {error}; choose another one, 0 takes a free one") from error


async def _nothing() -> None:
    pass


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


async def run(
    config: RouterConfig,
    *,
    on_listening: Callable[[Listening], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set, or SIGTERM or SIGINT arrives; then drain. A second signal ends the draining.

    Raises StartError. `on_listening` is called once requests can be sent.
    """
    tokenizer = await asyncio.to_thread(Tokenizer.load, config.model_dir)
    router = Router(config, tokenizer)
    stopping, hurry = stop or asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stopping.is_set() else stopping).set()

    handled = (signal.SIGTERM, signal.SIGINT)
    with contextlib.suppress(ValueError, RuntimeError):  # only the main thread gets signals
        for number in handled:
            loop.add_signal_handler(number, on_signal)
    try:
        await router.redis.require_ready(config.redis_wait_seconds)
        listening = await router.start()
        if config.ready_file:
            _write_ready_file(Path(config.ready_file), listening)
        if on_listening is not None:
            on_listening(listening)
        await stopping.wait()
        _log.info("router_draining", running=router.admission.running)
        draining, hurried = asyncio.create_task(router.stop()), asyncio.create_task(hurry.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for task in (hurried, draining):
            task.cancel()
        await asyncio.gather(hurried, draining, return_exceptions=True)
    finally:
        await router.stop(0)
        with contextlib.suppress(ValueError, RuntimeError):
            for number in handled:
                loop.remove_signal_handler(number)
        if config.ready_file:
            _remove(Path(config.ready_file))
    _log.info("router_stopped")


def _write_ready_file(path: Path, listening: Listening) -> None:
    """All of it or nothing, for whoever waits for the file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(asdict(listening)) + "\n")
    part.rename(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """A router process. Exit status 2: it cannot start, stderr says why."""
    parser = argparse.ArgumentParser(prog="shoal-router", description="The front door of a shoal cluster.")
    parser.add_argument("--config", required=True, help="JSON file with RouterConfig's fields; - reads stdin")
    options = parser.parse_args(arguments)
    try:
        text = sys.stdin.read() if options.config == "-" else Path(options.config).read_text()
        values = json.loads(text)
        if not isinstance(values, dict):
            raise StartError(f"{options.config} must hold one JSON object")
        config = RouterConfig.from_mapping(values)
        logs.configure(config.log_level, router=config.router_id)
        asyncio.run(run(config, on_listening=lambda listening: print(json.dumps(asdict(listening)), flush=True)))
    except (StartError, OSError, json.JSONDecodeError) as error:
        print(f"shoal-router: {error}", file=sys.stderr)
        return 2
    return 0

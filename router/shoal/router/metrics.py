"""What a router counts, served on /metrics. Labels have few values; no tenant, session or text is among them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """One registry per router, so that several live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "shoal_router_requests", "Requests that ended, by method and gRPC status.", ["method", "code"], registry=r
        )
        self.rejections = Counter(
            "shoal_router_rejections",
            "Requests that ended with an error of ours, by its reason.",
            ["reason"],
            registry=r,
        )
        self.tokens_in = Counter("shoal_router_input_tokens", "Prompt tokens of accepted requests.", registry=r)
        self.tokens_out = Counter("shoal_router_output_tokens", "Tokens generated.", registry=r)
        self.ttft = Histogram(
            "shoal_router_time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            buckets=_SECONDS,
            registry=r,
        )
        self.inter_token = Histogram(
            "shoal_router_inter_token_seconds",
            "Between two outputs of one sequence, per token.",
            buckets=_GAPS,
            registry=r,
        )
        self.queue_time = Histogram(
            "shoal_router_queue_seconds", "Time that requests waited for room.", buckets=_SECONDS, registry=r
        )
        self.migrations = Counter(
            "shoal_router_migrations", "Sequences that went on at another worker, by why.", ["reason"], registry=r
        )
        self.migration_pause = Histogram(
            "shoal_router_migration_pause_seconds",
            "From the loss of a worker to the sequence's next token.",
            buckets=_SECONDS,
            registry=r,
        )
        self.in_flight = Gauge("shoal_router_requests_in_flight", "Requests being served.", registry=r)
        self.queued = Gauge("shoal_router_requests_queued", "Requests waiting for room.", registry=r)
        self.workers = Gauge("shoal_router_workers_ready", "Workers that can be given work.", registry=r)
        self.registry_age = Gauge(
            "shoal_router_registry_age_seconds", "Time since the cluster registry was last read.", registry=r
        )

    def migrated(self, reason: str, seconds: float) -> None:
        """A sequence went on at another worker, `seconds` after `reason`."""
        self.migrations.labels(reason).inc()
        self.migration_pause.observe(seconds)

    def meter(self, arrived: float, clock: Callable[[], float]) -> Meter:
        """Measures one sequence of a request that arrived at `arrived` on `clock`."""
        return Meter(self, arrived, clock)


class Meter:
    """Times the outputs of one sequence."""

    def __init__(self, metrics: Metrics, arrived: float, clock: Callable[[], float]) -> None:
        self._metrics, self._clock = metrics, clock
        self._last = arrived
        self._first = True

    def tokens(self, count: int) -> None:
        """`count` tokens arrived now."""
        if count == 0:
            return
        now = self._clock()
        if self._first:
            self._metrics.ttft.observe(now - self._last)
        else:
            for _ in range(count):
                self._metrics.inter_token.observe((now - self._last) / count)
        self._first, self._last = False, now
        self._metrics.tokens_out.inc(count)


class MetricsServer:
    """/metrics over HTTP, on a thread of its own."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Raises OSError when the port is taken."""
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, host, metrics.registry)

    @property
    def port(self) -> int:
        """The port in use."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

"""What a router counts, served on /metrics.

Names follow Prometheus, and OpenTelemetry's conventions for generative AI where those have one (`gen_ai_server_…`).
Labels have few values: no session and no text is among them, and tenants only up to a number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from shoal.router.tally import CURRENT, Tally

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STORE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# The three below are those of OpenTelemetry's conventions.
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300.0, 900.0)

MOST_TENANTS = 100
"""Tenants with a name of their own in labels; all further ones are OTHERS."""
OTHERS = "other"


class Metrics:
    """One registry per router, so that several live in one process. Belongs to one event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._in_flight = 0
        self._tenants: set[str] = set()
        self.requests = self._counter("requests", "Requests that ended, by method and gRPC status.", "method", "code")
        self.rejections = self._counter(
            "rejections", "Requests that ended with an error of ours, by its reason.", "reason"
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From a request's arrival to its end, by method.",
            ["method"],
            buckets=_DURATION,
            registry=self.registry,
        )
        self.ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST_TOKEN,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between two outputs of one sequence, per token.",
            buckets=_PER_TOKEN,
            registry=self.registry,
        )
        self.queue_time = self._histogram("queue_seconds", "Time that requests waited for room.", _SECONDS)
        self._input = self._counter("input_tokens", "Prompt tokens of accepted requests.")
        self._output = self._counter("output_tokens", "Tokens generated.")
        self._reasoning = self._counter("reasoning_tokens", "Of those, reasoning.")
        self._cached = self._counter("cached_tokens", "Prompt tokens that a worker had in its cache.")
        self._usage = self._counter("tenant_tokens", "Tokens of requests that ended, by tenant.", "tenant", "kind")
        self._tenant_requests = self._counter("tenant_requests", "Requests that ended, by tenant.", "tenant")
        self.migrations = self._counter("migrations", "Sequences that went on at another worker, by why.", "reason")
        self.migration_pause = self._histogram(
            "migration_pause_seconds", "From the loss of a worker to the sequence's next token.", _SECONDS
        )
        self.store_time = Histogram(
            "shoal_router_session_store_seconds",
            "One call of the session store, by operation and whether it went well.",
            ["operation", "outcome"],
            buckets=_STORE,
            registry=self.registry,
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests being served.")
        self.queued = self._gauge("requests_queued", "Requests waiting for room.")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "How long the first of them has waited.")
        self.tokens_in_flight = self._gauge("tokens_in_flight", "Prompt and generated tokens of running requests.")
        self.tokens_in_flight.set_function(lambda: self._in_flight)
        self.workers = self._gauge("workers_ready", "Workers that can be given work.")
        self.workers_known = self._gauge("workers_known", "Workers that the registry and the configuration name.")
        self.workers_connected = self._gauge("workers_connected", "Of those, workers that answer.")
        self.registry_age = self._gauge("registry_age_seconds", "Time since the cluster registry was last read.")
        self.tokens_in = _Prompts(self)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"shoal_router_{name}", words, labels, registry=self.registry)

    def _gauge(self, name: str, words: str) -> Gauge:
        return Gauge(f"shoal_router_{name}", words, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"shoal_router_{name}", words, buckets=buckets, registry=self.registry)

    def migrated(self, reason: str, seconds: float) -> None:
        """A sequence went on at another worker, `seconds` after `reason`."""
        self.migrations.labels(reason).inc()
        self.migration_pause.observe(seconds)

    def meter(self, arrived: float, clock: Callable[[], float]) -> Meter:
        """Measures one sequence of a request that arrived at `arrived` on `clock`."""
        return Meter(self, arrived, clock)

    def took(self, tokens: int) -> None:
        """The current request reads `tokens` prompt tokens."""
        self._input.inc(tokens)
        if (tally := CURRENT.get()) is not None:
            tally.prompt += tokens
            self._in_flight += tokens

    def generated(self, tokens: int) -> None:
        """The current request got `tokens` tokens."""
        self._output.inc(tokens)
        if (tally := CURRENT.get()) is not None:
            if tally.generated == 0:
                tally.on_first()
            tally.generated += tokens
            self._in_flight += tokens

    def settle(self, tally: Tally, tenant: str) -> None:
        """A request ended: what it used belongs to its tenant, and is in flight no more."""
        self._in_flight -= tally.prompt + tally.generated
        self._reasoning.inc(tally.reasoning)
        self._cached.inc(tally.cached)
        name = self.tenant_label(tenant)
        self._tenant_requests.labels(name).inc()
        for kind, tokens in (("input", tally.prompt), ("output", tally.generated)):
            self._usage.labels(name, kind).inc(tokens)

    def tenant_label(self, tenant: str) -> str:
        """The tenant's name for the first MOST_TENANTS tenants, OTHERS for all that come later."""
        if tenant not in self._tenants and len(self._tenants) >= MOST_TENANTS:
            return OTHERS
        self._tenants.add(tenant)
        return tenant


class _Prompts:
    """Counts prompt tokens."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def inc(self, tokens: int) -> None:
        """`tokens` more."""
        self._metrics.took(tokens)


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
        self._metrics.generated(count)


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

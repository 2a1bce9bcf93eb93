"""What a worker counts, read from its state when Prometheus asks: a step pays nothing for it.

Labels: the worker's group and rank; the layer and expert of loads, as many as the model has. No request is among them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.proto.v1 import worker_pb2 as pb
from shoal.workers.experts.exchange import Traffic
from shoal.workers.ports import candidates, first_free

STATES = ("idle", "serving", "paused", "broken", "unfit", "ended")
"""What a worker's loop does, see `loop.State`."""

_COUNTERS = {
    "steps": ("steps", "Engine steps, those without tokens of this rank included."),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens computed."),
    "cached_tokens": ("prompt_cached_tokens", "Prompt tokens found in the prefix cache instead."),
    "generated_tokens": ("generated_tokens", "Tokens generated."),
    "preemptions": ("preemptions", "Sequences that gave their KV blocks back and are computed again."),
    "drafted_tokens": ("drafted_tokens", "Tokens guessed ahead."),
    "accepted_tokens": ("draft_accepted_tokens", "Guesses that were right."),
}
"""Field of the status -> name without prefix, and what it counts."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What is read at each scrape."""

    status: Callable[[], pb.GetStatusResponse]
    state: Callable[[], str]
    """One of STATES."""
    traffic: Callable[[], Traffic]
    """Of the exchange in force."""


class WorkerCollector(Collector):
    """Every family, from one look at the worker."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        status = self._readings.status()
        own = {"group": status.identity.group, "rank": str(status.identity.rank)}
        for field, (name, words) in _COUNTERS.items():
            yield _counter(name, words, own, getattr(status, field))
        yield _gauge("epoch", "Version of the group's membership and placement.", own, status.identity.epoch)
        yield _gauge("ready", "1 while it can be given work.", own, int(status.ready))
        yield _gauge("sequences_running", "Sequences with KV blocks.", own, status.running)
        yield _gauge("sequences_waiting", "Sequences that wait for room.", own, status.waiting)
        now = self._readings.state()
        state = GaugeMetricFamily("shoal_worker_state", "1 for what its engine does.", labels=[*own, "state"])
        for name in STATES:
            state.add_metric([*own.values(), name], int(name == now))
        yield state
        yield from self._kv(status, own)
        phases = CounterMetricFamily(
            "shoal_worker_step_seconds", "Time of its steps by phase; host time on a GPU.", labels=[*own, "phase"]
        )
        for phase, seconds in sorted(status.step_seconds.items()):
            phases.add_metric([*own.values(), phase], seconds)
        yield phases
        start = GaugeMetricFamily(
            "shoal_worker_start_seconds", "Time of its start by phase, until its first epoch.", labels=[*own, "phase"]
        )
        for phase, seconds in sorted(status.start_seconds.items()):
            start.add_metric([*own.values(), phase], seconds)
        yield start
        yield _counter("replayed_steps", "Steps replayed from recordings.", own, status.replayed_steps)
        traffic = self._readings.traffic()
        yield _counter("exchange_sent_bytes", "Sent to other ranks, in this epoch.", own, traffic.sent_bytes)
        yield _counter(
            "exchange_wait_seconds", "Spent waiting for other ranks to begin a step, in this epoch.", own,
            traffic.waited_seconds,
        )  # fmt: skip
        loads = CounterMetricFamily(
            "shoal_worker_expert_tokens", "Tokens computed per expert held here, in this epoch.",
            labels=[*own, "layer", "expert"],
        )  # fmt: skip
        for load in status.expert_loads:
            loads.add_metric([*own.values(), str(load.layer), str(load.expert)], load.tokens)
        yield loads

    @staticmethod
    def _kv(status: pb.GetStatusResponse, own: dict[str, str]) -> Iterator[Metric]:
        """Blocks of the two kinds of layers."""
        kinds = {
            "full": (status.kv_blocks, status.kv_blocks_used),
            "sliding": (status.sliding_blocks, status.sliding_blocks_used),
        }
        names = [*own, "layers"]
        total = GaugeMetricFamily("shoal_worker_kv_blocks", "KV blocks, by kind of layer.", labels=names)
        used = GaugeMetricFamily("shoal_worker_kv_blocks_used", "Those that sequences hold.", labels=names)
        for kind, (all_blocks, held) in kinds.items():
            total.add_metric([*own.values(), kind], all_blocks)
            used.add_metric([*own.values(), kind], held)
        yield total
        yield used
        yield _gauge("kv_bytes", "Size of the KV cache.", own, status.kv_bytes)


class MetricsServer:
    """/metrics of one worker over HTTP, on a thread of its own."""

    def __init__(self, readings: Readings, host: str, port: int) -> None:
        """On the first free port from `port` on, 0: any. Raises OSError when none can be had."""
        registry = CollectorRegistry()
        registry.register(WorkerCollector(readings))
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = first_free(
            candidates(0, port), lambda chosen: start_http_server(chosen, host, registry)
        )

    @property
    def port(self) -> int:
        """The port in use."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _counter(name: str, words: str, own: dict[str, str], value: float) -> Metric:
    family = CounterMetricFamily(f"shoal_worker_{name}", words, labels=list(own))
    family.add_metric(list(own.values()), value)
    return family


def _gauge(name: str, words: str, own: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"shoal_worker_{name}", words, labels=list(own))
    family.add_metric(list(own.values()), value)
    return family

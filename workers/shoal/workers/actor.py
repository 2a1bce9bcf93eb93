"""The Ray actor: a thin shell around `Worker`, which is tested without Ray.

    actor = ray.remote(WorkerActor).options(num_cpus=1, max_concurrency=4).remote(WorkerConfig(model="…"))
    facts = ray.get(actor.prepare.remote())          # dense weights loaded, gRPC listening, not yet ready
    report = ray.get(actor.join.remote(group_spec))  # experts loaded, ranks connected, serving
    ray.get(actor.stop.remote())

Nothing is called per token: routers talk to the worker's gRPC stream. When the process dies, routers see the
stream end at once; the peers' next exchange fails and they report not ready.
"""

from __future__ import annotations

from typing import Any

from shoal.workers.config import WorkerConfig
from shoal.workers.experts.group import GroupSpec, JoinReport, WorkerFacts
from shoal.workers.orphan import end_with_parent
from shoal.workers.worker import Worker


class WorkerActor:
    """One rank. Made a Ray actor by whoever starts it."""

    def __init__(self, config: WorkerConfig) -> None:
        end_with_parent()
        self._worker = Worker(config)

    def prepare(self) -> WorkerFacts:
        """Load what every rank holds and listen. Raises CheckpointError for a bad checkpoint."""
        return self._worker.prepare()

    def join(self, spec: GroupSpec) -> JoinReport:
        """Load this rank's experts, connect to the peers, start serving. Raises ExchangeError without a peer."""
        return self._worker.join(spec)

    def status(self) -> dict[str, Any]:
        """Plain values for people and tools."""
        return self._worker.status()

    def stop(self, grace: float = 0.0) -> None:
        """Refuse new requests, wait up to `grace` seconds for running ones, then end the threads."""
        self._worker.stop(grace)

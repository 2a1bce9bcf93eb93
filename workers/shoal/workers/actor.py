"""The Ray actor: a thin shell around `Worker`, which is tested without Ray.

    actor = ray.remote(WorkerActor).options(num_cpus=1, max_concurrency=4).remote(WorkerConfig(model="…"))
    facts = ray.get(actor.prepare.remote())                 # dense weights loaded, gRPC listening, in no epoch
    report = ray.get(actor.reconfigure.remote(spec, True))  # experts loaded, ranks connected, serving
    ray.get(actor.stop.remote())

Nothing is called per token: routers talk to the worker's gRPC stream. When the process dies, routers and controller see
their streams end at once; the peers' exchange fails, and they rest with all they have until a new epoch comes.
"""

from __future__ import annotations

from typing import Any

from shoal.wire import logs
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.faults import Fault
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from shoal.workers.orphan import end_with_parent
from shoal.workers.worker import Worker


class WorkerActor:
    """One rank. Made a Ray actor by whoever starts it."""

    def __init__(self, config: WorkerConfig) -> None:
        end_with_parent()
        logs.configure(config.log_level, role="worker", worker=config.worker_id)
        self._worker = Worker(config)

    def prepare(self) -> WorkerFacts:
        """Load what every rank holds and listen. Raises CheckpointError for a bad checkpoint."""
        return self._worker.prepare()

    def stage(self, spec: GroupSpec, patient: bool = True) -> int:
        """Get what the epoch will want while the one before is served; how many experts. Raises NoRoomError."""
        return self._worker.stage(spec, patient)

    def reconfigure(self, spec: GroupSpec, together: bool) -> EpochReport:
        """Serve the epoch. Raises ExchangeError without a peer, UnfitError for wrong logits."""
        return self._worker.reconfigure(spec, together)

    def describe(self) -> tuple[WorkerFacts | None, GroupSpec | None, int]:
        """For a controller that starts again."""
        return self._worker.describe()

    def inject(self, fault: Fault, seconds: float, amount: float) -> None:
        """Break the exchange on purpose, where that is allowed."""
        self._worker.inject(fault, seconds, amount)

    def drain(self, wanted: bool = True) -> None:
        """Take nothing new, or take requests again."""
        self._worker.drain(wanted)

    def status(self) -> dict[str, Any]:
        """Plain values for people and tools."""
        return self._worker.status()

    def stop(self, grace: float = 0.0) -> None:
        """Refuse new requests, wait up to `grace` seconds for running ones, then end the threads."""
        self._worker.stop(grace)

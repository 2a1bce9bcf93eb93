"""A controller's fleet whose workers are plain processes: everything but Ray is real, and they can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from shoal.cluster.fleet import FleetError, Found, obstacle_behind
from shoal.cluster.group_state import Obstacle
from shoal.workers.config import WorkerConfig
from shoal.workers.experts.faults import Fault
from shoal.workers.experts.group import EpochReport, GroupSpec, WorkerFacts
from tests.workers.processes import WorkerProcess

ENTER_TIMEOUT = 10.0


class ProcessFleet:
    """Implements `fleet.Fleet`. It outlives controllers, as Ray does."""

    def __init__(self, model: Path, **settings: Any) -> None:
        self._settings = {"model": str(model), "kv_tokens": 16384, **settings}
        self.workers: dict[str, WorkerProcess] = {}
        self.out_of_reach: dict[str, WorkerProcess] = {}
        """Workers that can be neither called nor killed, as on a machine that is cut off."""

    def lose(self, name: str) -> None:
        """It lives on, out of reach."""
        self.out_of_reach[name] = self.workers.pop(name)

    async def hire(self, group: str, name: str) -> WorkerFacts:
        config = WorkerConfig(worker_id=name, group=group, **self._settings)
        self.workers[name] = worker = await asyncio.to_thread(WorkerProcess, config)
        return worker.facts

    async def stage(self, name: str, spec: GroupSpec, patient: bool) -> None:
        await self._answer(self._worker(name).call("stage", spec, patient))

    async def enter(self, name: str, spec: GroupSpec, together: bool) -> EpochReport:
        call = self._answer(self._worker(name).call("reconfigure", spec, together))
        try:
            report: EpochReport = await asyncio.wait_for(call, ENTER_TIMEOUT)
        except TimeoutError:
            raise FleetError("hangs", Obstacle.HUNG) from None
        return report

    async def drain(self, name: str, wanted: bool) -> None:
        await self._answer(self._worker(name).call("drain", wanted))

    async def inject(self, name: str, fault: Fault, seconds: float, amount: float) -> None:
        await self._answer(self._worker(name).call("inject", fault, seconds, amount))

    async def kill(self, name: str, facts: WorkerFacts | None) -> None:
        if (worker := self.workers.pop(name, None)) is not None:
            await asyncio.to_thread(worker.kill)

    async def dismiss(self, name: str, grace: float) -> None:
        with contextlib.suppress(FleetError, TimeoutError):
            await asyncio.wait_for(self._answer(self._worker(name).call("stop", grace)), grace + 10.0)
        await self.kill(name, None)

    async def groups(self) -> list[str]:
        return sorted({name.rpartition("-")[0] for name in self.workers})

    async def survey(self, group: str) -> list[Found]:
        found = []
        for name, worker in list(self.workers.items()):
            if name.rpartition("-")[0] == group and worker.process.is_alive():
                try:
                    facts, spec, epoch = await asyncio.wait_for(self._answer(worker.call("describe")), 10.0)
                except (FleetError, TimeoutError):
                    found.append(Found(name, None, None))
                else:
                    found.append(Found(name, facts, spec, epoch))
        return found

    def signal(self, name: str, number: int) -> None:
        """Send a worker a signal; one that is gone already does not matter."""
        with contextlib.suppress(ProcessLookupError, KeyError):
            os.kill(self.workers[name].facts.pid, number)

    def close(self) -> None:
        """Kill what is left, stopped ones too."""
        for worker in (*self.workers.values(), *self.out_of_reach.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.facts.pid, signal.SIGCONT)
            worker.kill()
        self.workers.clear()
        self.out_of_reach.clear()

    def _worker(self, name: str) -> WorkerProcess:
        if name not in self.workers:
            raise FleetError(f"there is no worker {name}")
        return self.workers[name]

    @staticmethod
    async def _answer(call: Future[Any]) -> Any:
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise FleetError(f"{type(error).__name__}: {error}", obstacle_behind(error)) from error

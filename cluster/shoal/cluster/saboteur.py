"""Breaks workers on purpose, for tests and game days. It exists only in a cluster that was started with `chaos`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Protocol

import structlog

from shoal.cluster.controller import Controller
from shoal.cluster.fleet import FleetError
from shoal.proto.v1 import admin_pb2 as pb
from shoal.workers.experts.faults import Fault
from shoal.workers.experts.group import WorkerFacts

log = structlog.get_logger()

_INSIDE = {pb.FAULT_DELAY: Fault.DELAY, pb.FAULT_DROP: Fault.DROP, pb.FAULT_CORRUPT: Fault.CORRUPT}


class Sabotaged(Protocol):
    """The part of a fleet that it needs."""

    async def inject(self, name: str, fault: Fault, seconds: float, amount: float) -> None:
        """Break the worker's exchange. Raises FleetError."""


class Saboteur:
    """Belongs to the controller's event loop."""

    def __init__(self, controller: Controller, fleet: Sabotaged) -> None:
        self._controller, self._fleet = controller, fleet
        self._waking: set[asyncio.Task[None]] = set()

    async def inject(self, fault: pb.Fault.ValueType, name: str, seconds: float, amount: float) -> None:
        """Break it now. Raises LookupError for an unknown worker or fault, FleetError when it is out of reach."""
        facts = self._facts(name)
        log.warning("sabotage", fault=pb.Fault.Name(fault), worker=name, seconds=seconds, amount=amount)
        if fault in _INSIDE:
            await self._fleet.inject(name, _INSIDE[fault], seconds, amount)
        elif fault == pb.FAULT_KILL:
            _signal(facts, signal.SIGKILL)
        elif fault == pb.FAULT_STOP:
            _signal(facts, signal.SIGSTOP)
            task = asyncio.create_task(self._wake(facts, seconds))
            self._waking.add(task)
            task.add_done_callback(self._waking.discard)
        else:
            raise LookupError("no such fault")

    async def _wake(self, facts: WorkerFacts, seconds: float) -> None:
        await asyncio.sleep(seconds)
        with contextlib.suppress(FleetError):  # it was killed meanwhile, as it should be
            _signal(facts, signal.SIGCONT)

    def _facts(self, name: str) -> WorkerFacts:
        for state in self._controller.groups.values():
            hand = state.hand(name)
            if hand is not None and hand.facts is not None:
                return hand.facts
        raise LookupError(f"no worker {name!r} is prepared")


def _signal(facts: WorkerFacts, number: signal.Signals) -> None:
    """Only on this machine; elsewhere the process id would be somebody else's."""
    if facts.node_ip != "127.0.0.1":
        raise FleetError(f"{facts.worker_id} is on {facts.node_ip}: signals reach only the controller's own machine")
    try:
        os.kill(facts.pid, number)
    except ProcessLookupError as error:
        raise FleetError(f"{facts.worker_id} is dead already") from error

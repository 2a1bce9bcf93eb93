"""Reads what each expert had to do and asks for a better placement, when that is worth an epoch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc.aio
import numpy as np
import structlog

from shoal.cluster.balance import Loads, balanced_placement, imbalance, moves
from shoal.cluster.controller import Controller
from shoal.cluster.group_state import GroupState, Phase
from shoal.proto.v1 import worker_pb2
from shoal.proto.v1.worker_pb2_grpc import WorkerServiceStub
from shoal.wire.credentials import open_channel
from shoal.wire.tls import INTERNAL_NAME, TlsConfig, internal_client

log = structlog.get_logger()

LEAST_TOKENS = 1000
"""Pairs of token and expert per layer; fewer say nothing of the next ones."""

LEAST_GAIN = 0.05
"""Of the mean load: less is not worth an epoch."""

_TIMEOUT = 5.0  # seconds for a worker to say what it did


@dataclass(frozen=True, slots=True)
class Balance:
    """Load of the fullest rank over the mean, before and after, and the experts that are read for it."""

    group: str
    before: float
    after: float
    moves: int


class Balancer:
    """Belongs to the controller's event loop."""

    def __init__(self, controller: Controller, copies: int, tls: TlsConfig) -> None:
        """`copies`: slots per rank and layer for spare copies of hot experts."""
        self._controller, self._copies, self._tls = controller, copies, tls

    async def run(self, period: float) -> None:
        """Balance every group every `period` seconds, for ever."""
        while True:
            await asyncio.sleep(period)
            for group in list(self._controller.groups):
                await self.balance(group)

    async def balance(self, group: str) -> Balance | None:
        """Change the placement of a group that is ready, if that gains enough. None when there is nothing to go by."""
        state = self._controller.groups.get(group)
        if state is None or state.phase is not Phase.READY or state.spec is None or state.spec.size < 2:
            return None
        spec = state.spec
        loads = await self._loads(state)
        if loads is None or loads.sum(1).min() < LEAST_TOKENS:
            return None
        slots = -(-loads.shape[1] // spec.size) + self._copies
        better = await asyncio.to_thread(balanced_placement, loads, spec.size, slots, spec.placement)
        before, after = imbalance(spec.placement, loads), imbalance(better, loads)
        if before - after < LEAST_GAIN:
            return Balance(group, before, before, 0)
        found = Balance(group, before, after, moves(spec.placement, better))
        log.info("rebalance", group=group, before=round(before, 3), after=round(after, 3), moves=found.moves)
        self._controller.rebalance(group, spec.epoch, better)
        return found

    async def _loads(self, state: GroupState) -> Loads | None:
        """Tokens per layer and expert since the epoch began, of all ranks; None when one does not answer."""
        facts = [hand.facts for hand in state.members if hand.facts is not None]
        try:
            answers = await asyncio.gather(*(self._status(f.address) for f in facts))
        except grpc.aio.AioRpcError:
            return None
        loads = np.zeros((facts[0].num_layers, facts[0].num_experts))
        for answer in answers:
            if state.spec is None or answer.identity.epoch != state.spec.epoch:
                return None
            for load in answer.expert_loads:
                loads[load.layer, load.expert] += load.tokens
        return loads

    async def _status(self, address: str) -> worker_pb2.GetStatusResponse:
        async with open_channel(address, credentials=internal_client(self._tls), name=INTERNAL_NAME) as channel:
            return await WorkerServiceStub(channel).GetStatus(worker_pb2.GetStatusRequest(), timeout=_TIMEOUT)

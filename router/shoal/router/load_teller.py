"""Says in Redis, about once a second, what this router's requests feel: see `shoal.wire.load`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from shoal.router.store.away import ABSENT
from shoal.router.store.script import Client
from shoal.router.waiting_line import WaitingLine
from shoal.wire.load import LOAD_FIELD, LOADS_KEY, MOST_ENTRIES, PERIOD, RouterLoad

WINDOW = 5.0
"""Seconds of which an entry tells: shorter than an autoscaler's patience, so that one slow request is not overload."""


@dataclass(frozen=True, slots=True)
class LoadTeller:
    """Belongs to one router."""

    router_id: str
    room: WaitingLine
    """Who waits for room."""
    first_token: WaitingLine
    """Who waits for a first token."""

    def load(self) -> RouterLoad:
        """Of the last seconds."""
        _, queue_seconds = self.room.felt(WINDOW)
        requests, first_token_seconds = self.first_token.felt(WINDOW)
        return RouterLoad(self.router_id, requests, queue_seconds, first_token_seconds)

    async def run(self, client: Client) -> None:
        """For ever. What cannot be told now is not told later: it would not be true any more."""
        asked: Any = client
        while True:
            try:
                fields = {LOAD_FIELD: self.load().encode()}
                await asked.xadd(LOADS_KEY, fields, maxlen=MOST_ENTRIES, approximate=True)
            except ABSENT:  # membership, which reads all the time, logs that Redis is away
                pass
            await asyncio.sleep(PERIOD)

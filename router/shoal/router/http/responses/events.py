"""The events of a response that runs in the background, kept so that any router can tell them, from any place on.

shoal:response:{tenant:id}:events     a list; an event's place in it is its sequence number
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from shoal.router.errors import SessionsAwayError
from shoal.router.store.away import answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Client, Script

KEPT_SECONDS = 3600
"""How long events can be read again; the response itself is kept longer."""
MOST_UNWRITTEN = 4096
"""Events that wait for Redis; with more the response fails."""
_AT_ONCE = 512
_AGAIN_SECONDS = 0.2

# KEYS: events. ARGV: number of the first event, seconds to keep them, events... A writer that lost the answer may ask
# again: what is there already is not added twice.
_APPEND = Script("""
local there = redis.call('LLEN', KEYS[1]) - tonumber(ARGV[1])
for i = 3 + math.max(0, there), #ARGV do
  redis.call('RPUSH', KEYS[1], ARGV[i])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
""")


class Events:
    """Events by tenant and response. Every method raises SessionsAwayError when the store does not answer."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def append(self, tenant: str, response_id: str, first: int, events: Sequence[bytes]) -> None:
        """Keep them; `first` is the number of the first one."""
        async with answering("events of responses"):
            await _APPEND.run(self._client, [_key(tenant, response_id)], [first, KEPT_SECONDS, *events])

    async def read(self, tenant: str, response_id: str, start: int) -> list[bytes]:
        """Those from number `start` on, as many as are kept by now within a bound."""
        async with answering("events of responses"):
            asked: Any = self._client
            found: list[bytes] = await asked.lrange(_key(tenant, response_id), start, start + _AT_ONCE - 1)
        return found


class Writer:
    """Appends events in the order in which they are put, many at once when Redis is slower than they come."""

    def __init__(self, events: Events, tenant: str, response_id: str) -> None:
        self._events, self._tenant, self._response_id = events, tenant, response_id
        self._unwritten: list[bytes] = []
        self._next = 0
        self._put, self._written = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._write(), name=f"events of {response_id}")

    def put(self, event: bytes) -> None:
        """Never waits. Raises SessionsAwayError when too many are unwritten."""
        if len(self._unwritten) >= MOST_UNWRITTEN:
            raise SessionsAwayError("events of responses cannot be written fast enough")
        self._unwritten.append(event)
        self._put.set()

    async def close(self, patience: float) -> None:
        """Wait until everything is written, at most `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while self._unwritten:
                    self._written.clear()
                    await self._written.wait()
        except TimeoutError:
            pass
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            await self._put.wait()
            self._put.clear()
            while self._unwritten:
                batch = self._unwritten[:_AT_ONCE]
                try:
                    await self._events.append(self._tenant, self._response_id, self._next, batch)
                except SessionsAwayError:
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                del self._unwritten[: len(batch)]
                self._next += len(batch)
                self._written.set()


def _key(tenant: str, response_id: str) -> str:
    return f"{tagged('response', tenant, response_id)}:events"

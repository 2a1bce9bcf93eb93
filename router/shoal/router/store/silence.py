"""Whether Redis has just been silent, for what a request can do without.

A server that is down refuses at once. One that hangs, or is cut off, costs each question seconds: then one request in a
while asks, and everybody else goes on as without Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import redis

from shoal.router.errors import SessionsAwayError
from shoal.router.store.away import RETRY_AFTER_MS

_PAUSE = 1.0  # seconds in which nobody asks, after that one
_PATIENCE = 1.0  # seconds that this one waits


class Silence:
    """Shared by all who ask one Redis. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._silent, self._ask_from = False, 0.0

    @asynccontextmanager
    async def respected(self) -> AsyncGenerator[None, None]:
        """Ask inside. Raises SessionsAwayError at once while nobody shall ask, else what is raised inside."""
        began = self._clock()
        if self._silent and began < self._ask_from:
            raise SessionsAwayError("Redis did not answer just now", retry_after_ms=RETRY_AFTER_MS)
        patience = _PATIENCE if self._silent else None
        self._ask_from = began + _PAUSE + _PATIENCE  # of those who come meanwhile nobody asks
        try:
            async with asyncio.timeout(patience):
                yield
        except (SessionsAwayError, TimeoutError) as error:
            self._silent = self._silent or isinstance(error.__cause__, (TimeoutError, redis.TimeoutError))
            self._ask_from = self._clock() + _PAUSE
            if isinstance(error, SessionsAwayError):
                raise
            raise SessionsAwayError("Redis does not answer", retry_after_ms=RETRY_AFTER_MS) from error
        else:
            self._silent = False

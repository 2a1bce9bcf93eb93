"""How many requests are served at once and how many may wait. Overload is refused early, with a hint."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from shoal.router.errors import QueueFullError, StoppingError


def retry_hint_ms(waiting: int, running: int, seconds_per_request: float) -> int:
    """When room is likely: the time to serve who waits, at the present rate; 0.1 to 30 s.

    >>> retry_hint_ms(waiting=10, running=5, seconds_per_request=2.0)
    4400
    """
    seconds = (waiting + 1) * seconds_per_request / max(1, running)
    return int(1000 * min(30.0, max(0.1, seconds)))


class Admission:
    """First come, first served. Belongs to one event loop."""

    def __init__(self, max_running: int, max_waiting: int, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back."""
        self._max_running, self._max_waiting, self._clock = max_running, max_waiting, clock
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 1.0
        self._stopping = False
        self.running = 0
        """Requests being served."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiters)

    @property
    def stopping(self) -> bool:
        """Whether nobody is admitted any more."""
        return self._stopping

    def stop(self) -> None:
        """Admit nobody any more; who waits is sent away, who runs goes on."""
        self._stopping = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(StoppingError("this router is shutting down", retry_after_ms=100))
        self._waiters.clear()

    @asynccontextmanager
    async def admitted(self) -> AsyncGenerator[float, None]:
        """Room for one request; gives the seconds it waited. Raises QueueFullError or StoppingError at once."""
        began = self._clock()
        await self._enter()
        entered = self._clock()
        try:
            yield entered - began
        finally:
            self._mean_seconds += 0.1 * (self._clock() - entered - self._mean_seconds)
            self._leave()

    async def _enter(self) -> None:
        if self._stopping:
            raise StoppingError("this router is shutting down", retry_after_ms=100)
        if self.running < self._max_running:
            self.running += 1
            return
        if len(self._waiters) >= self._max_waiting:
            hint = retry_hint_ms(len(self._waiters), self.running, self._mean_seconds)
            counts = f"{self.running} requests run and {len(self._waiters)} wait"
            raise QueueFullError(f"the router is full: {counts}", retry_after_ms=hint)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            await turn  # who leaves hands its place on, so `running` stays as it is
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # who left meanwhile may have skipped us already
                    self._waiters.remove(turn)
            elif turn.exception() is None:
                self._leave()  # the place had just been given to us
            raise

    def _leave(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

"""How many requests are served at once, how many may wait, and whose turn is next. Overload is refused early."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shoal.router.errors import QueueFullError, StoppingError
from shoal.router.fair_queue import FairQueue


def retry_hint_ms(waiting: int, running: int, seconds_per_request: float) -> int:
    """When room is likely: the time to serve who waits, at the present rate; 0.1 to 30 s.

    >>> retry_hint_ms(waiting=10, running=5, seconds_per_request=2.0)
    4400
    """
    seconds = (waiting + 1) * seconds_per_request / max(1, running)
    return int(1000 * min(30.0, max(0.1, seconds)))


@dataclass(frozen=True, slots=True)
class Claim:
    """Who wants a place, and how much of one."""

    flow: str = ""
    """Places are shared fairly among flows: tenants."""
    weight: float = 1.0
    cost: float = 1.0
    """Size of the request, in any unit that is the same for all."""


@dataclass(eq=False, slots=True)
class _Waiter:
    claim: Claim
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """Shared fairly among flows; first come, first served within one. Belongs to one event loop."""

    def __init__(self, max_running: int, max_waiting: int, clock: Callable[[], float], flow_share: float = 1.0) -> None:
        """`clock` gives seconds that never go back; one flow takes at most `flow_share` of the places."""
        self._max_running, self._max_waiting, self._clock = max_running, max_waiting, clock
        self._most_of_one = max(1, int(max_running * flow_share))
        self._queue = FairQueue[_Waiter]()
        self._by_flow = Counter[str]()
        self._mean_seconds = 1.0
        self._stopping = False
        self.running = 0
        """Requests being served."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def stopping(self) -> bool:
        """Whether nobody is admitted any more."""
        return self._stopping

    def stop(self) -> None:
        """Admit nobody any more; who waits is sent away, who runs goes on."""
        self._stopping = True
        while self._queue:
            self._send_away(self._queue.pop(), StoppingError("this router is shutting down", retry_after_ms=100))

    @asynccontextmanager
    async def admitted(self, claim: Claim | None = None) -> AsyncGenerator[float, None]:
        """Room for one request; gives the seconds it waited. Raises QueueFullError or StoppingError.

        A full queue refuses the newcomer, unless somebody else fills more of it: then the last of theirs.
        """
        began = self._clock()
        waiter = _Waiter(claim or Claim())
        await self._enter(waiter)
        entered = self._clock()
        try:
            yield entered - began
        finally:
            self._mean_seconds += 0.1 * (self._clock() - entered - self._mean_seconds)
            self._leave(waiter.claim.flow)

    async def _enter(self, waiter: _Waiter) -> None:
        if self._stopping:
            raise StoppingError("this router is shutting down", retry_after_ms=100)
        claim = waiter.claim
        room = self.running < self._max_running and self._by_flow[claim.flow] < self._most_of_one
        if not room and self.waiting >= self._max_waiting:
            self._make_room(claim.flow)
        self._queue.push(claim.flow, waiter, claim.cost, claim.weight)
        self._hand_out()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._leave(claim.flow)  # the place had just been given to us
            else:
                self._queue.remove(claim.flow, waiter)
            raise

    def _make_room(self, flow: str) -> None:
        """In a queue that is full, or raise QueueFullError."""
        full = f"the router is full: {self.running} requests run and {self.waiting} wait"
        hint = retry_hint_ms(self.waiting, self.running, self._mean_seconds)
        longest = self._queue.longest() if self._queue else flow
        if self._queue.waiting(longest) <= self._queue.waiting(flow) + 1:
            raise QueueFullError(full, retry_after_ms=hint)
        self._send_away(self._queue.drop_last(longest), QueueFullError(full, retry_after_ms=hint))

    def _hand_out(self) -> None:
        """Give free places to who is next."""
        while self.running < self._max_running:
            full = {flow for flow, count in self._by_flow.items() if count >= self._most_of_one}
            waiter = self._queue.pop_but(full)
            if waiter is None:
                return
            self.running += 1
            self._by_flow[waiter.claim.flow] += 1
            waiter.turn.set_result(None)

    def _leave(self, flow: str) -> None:
        self.running -= 1
        self._by_flow[flow] -= 1
        if not self._by_flow[flow]:
            del self._by_flow[flow]
        self._hand_out()

    @staticmethod
    def _send_away(waiter: _Waiter, error: Exception) -> None:
        if not waiter.turn.done():
            waiter.turn.set_exception(error)

"""Start-time fair queueing: who waits is served in the order in which an ideally shared server would begin it.

Each flow (a tenant) has a virtual time that its requests move on by cost / weight. What was served of a flow counts
whether it waited or not, so one that floods while there is room is behind everybody once there is none. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flow(Generic[T]):
    finish: float = 0.0
    """Virtual time at which everything it asked for would be done."""
    waiting: deque[tuple[float, float, int, T]] = field(default_factory=deque)
    """(start, finish, arrival, item), in order."""


class FairQueue(Generic[T]):
    """Items of several flows.

    >>> queue = FairQueue[str]()
    >>> for item in ("a1", "a2", "a3"): queue.push("a", item)
    >>> queue.push("b", "b1")
    >>> [queue.pop() for _ in range(4)]
    ['a1', 'b1', 'a2', 'a3']
    """

    def __init__(self) -> None:
        self._flows: dict[str, _Flow[T]] = {}
        self._now = 0.0
        self._arrivals = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def waiting(self, flow: str) -> int:
        """Items of a flow."""
        found = self._flows.get(flow)
        return len(found.waiting) if found is not None else 0

    def longest(self) -> str:
        """The flow with the most items, for its weight aside. There must be one."""
        return max(self._flows, key=lambda name: len(self._flows[name].waiting))

    def push(self, flow: str, item: T, cost: float = 1.0, weight: float = 1.0) -> None:
        """Add an item; `cost` and `weight` are above 0."""
        assert cost > 0, cost
        assert weight > 0, weight
        found = self._flows.setdefault(flow, _Flow())
        start = max(self._now, found.finish)
        found.finish = start + cost / weight
        self._arrivals += 1
        self._size += 1
        found.waiting.append((start, found.finish, self._arrivals, item))

    def pop(self) -> T:
        """Take the item that began first; of equals the one that came first. There must be one."""
        item = self.pop_but(())
        assert item is not None, "the queue is empty"
        return item

    def pop_but(self, flows: Container[str]) -> T | None:
        """The same, leaving some flows out; None when nothing else is there."""
        name = min((n for n in self._flows if self._flows[n].waiting and n not in flows), key=self._head, default=None)
        if name is None:
            return None
        start, _, _, item = self._flows[name].waiting.popleft()
        self._size -= 1
        self._now = max(self._now, start)
        self._forget()
        return item

    def drop_last(self, flow: str) -> T:
        """Take a flow's latest item back, as if it had not come."""
        found = self._flows[flow]
        start, _, _, item = found.waiting.pop()
        found.finish = start
        self._size -= 1
        return item

    def remove(self, flow: str, item: T) -> bool:
        """Take an item out, wherever it stands; False when it is not there. What came after it keeps its time."""
        found = self._flows.get(flow)
        for entry in found.waiting if found is not None else ():
            if entry[3] is item:
                assert found is not None
                found.waiting.remove(entry)
                self._size -= 1
                return True
        return False

    def _head(self, name: str) -> tuple[float, int]:
        start, _, arrival, _ = self._flows[name].waiting[0]
        return start, arrival

    def _forget(self) -> None:
        """Flows that wait for nothing and are behind everybody's time have no more claim than new ones."""
        for name in [n for n, f in self._flows.items() if not f.waiting and f.finish <= self._now]:
            del self._flows[name]

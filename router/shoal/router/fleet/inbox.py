"""Outputs of one sequence on their way from a worker's stream to the request that waits for them."""

from __future__ import annotations

import asyncio
from collections import deque

from shoal.router.errors import SlowReaderError, WireError
from shoal.router.fleet.backend import Accepted, Tokens


class Inbox:
    """Filled without waiting by the reader of a worker's stream, so a slow client never holds up the others.

    Bounded: with more than `max_tokens` unread it fails with SlowReaderError. After a failure nothing more is taken;
    what was put before is still read first.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._items: deque[Accepted | Tokens] = deque()
        self._unread = 0
        self._failure: WireError | None = None
        self._changed = asyncio.Event()

    def put(self, item: Accepted | Tokens) -> None:
        """Never blocks, never raises."""
        if self._failure is not None:
            return
        self._unread += len(item.ids) if isinstance(item, Tokens) else 0
        if self._unread > self._max_tokens:
            self.fail(SlowReaderError(f"more than {self._max_tokens} generated tokens wait to be read: read faster"))
            return
        self._items.append(item)
        self._changed.set()

    def fail(self, error: WireError) -> None:
        """The reader gets `error` once it has read what is there; only the first failure counts."""
        self._failure = self._failure or error
        self._changed.set()

    async def get(self) -> Accepted | Tokens:
        """The next item. Raises the failure when there is none left."""
        while not self._items:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        self._unread -= len(item.ids) if isinstance(item, Tokens) else 0
        return item

"""The end of tasks that may not hear that they are to end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

_AGAIN = 0.02  # seconds


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them until they are over. Once is not enough: a client of Redis that is cancelled in the middle of a call
    may take that for an error of its connection, and who asks again and again goes on as if nothing had been said."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN)

"""Several streams of events as one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

_Event = TypeVar("_Event")


class _Over:
    """A stream ended."""


async def merged(streams: Sequence[AsyncGenerator[_Event, None]]) -> AsyncGenerator[_Event, None]:
    """The events of all streams as they come. The first failure ends all of them, and so does closing this."""
    if len(streams) == 1:
        async with contextlib.aclosing(streams[0]) as events:
            async for event in events:
                yield event
        return
    ready: asyncio.Queue[_Event | Exception | _Over] = asyncio.Queue(maxsize=len(streams))

    async def pump(stream: AsyncGenerator[_Event, None]) -> None:
        try:
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    await ready.put(event)
            await ready.put(_Over())
        except Exception as error:
            await ready.put(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            match await ready.get():
                case _Over():
                    running -= 1
                case Exception() as error:
                    raise error
                case event:
                    yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Tasks with names, begun and cancelled by them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


class Tasks:
    """Belongs to one event loop. A task that fails is logged; nobody waits for one."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self, name: str, exactly: bool = False) -> None:
        """Those of that name, or whose name begins so."""
        for task in self._tasks:
            if task.get_name() == name or (not exactly and task.get_name().startswith(name)):
                task.cancel()

    @property
    def all(self) -> list[asyncio.Task[None]]:
        """Those that are not done."""
        return list(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("controller failed at its work", task=task.get_name(), exc_info=error)

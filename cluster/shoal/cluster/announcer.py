"""Writes what routers shall know of the groups, again and again until the registry has it.

    writing = asyncio.create_task(announcer.run())
    announcer.publish(entry)                  at once: the controller never waits for Redis
    await announcer.told("g0", within=2.0)    where routers have to know first

A registry that is away delays announcements and breaks nothing. Now and then everything is written once more: a Redis
that was restarted may have lost the latest of it, and routers would never hear of workers that nobody announces.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from shoal.cluster.registry_writer import Registry, RegistryAwayError
from shoal.wire.registry import GroupEntry

log = structlog.get_logger()

ANNOUNCE_AGAIN = 5.0
"""Seconds after which the registry is written anew although nothing changed."""

_PAUSE = 0.1  # seconds after a registry was away


class Announcer:
    """Belongs to the controller's event loop. Of a group that changed twice meanwhile only the latest is written."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry, self._clock = registry, clock
        self._unwritten: dict[str, GroupEntry | None] = {}
        self._announced: dict[str, GroupEntry] = {}
        self._announced_at = clock()
        self._changed = asyncio.Event()
        self._written = asyncio.Condition()

    def publish(self, entry: GroupEntry) -> None:
        """The group is like this now."""
        self._unwritten[entry.group] = self._announced[entry.group] = entry
        self._changed.set()

    def remove(self, group: str) -> None:
        """The group is no more."""
        self._announced.pop(group, None)
        self._unwritten[group] = None
        self._changed.set()

    def tick(self) -> None:
        """Everything is written again when it is time."""
        if (now := self._clock()) - self._announced_at >= ANNOUNCE_AGAIN:
            self._announced_at = now
            self._unwritten = {**self._announced, **self._unwritten}
            self._changed.set()

    async def told(self, *groups: str, within: float) -> bool:
        """Wait until the registry has the latest of these groups, or for so many seconds; whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within), self._written:
                await self._written.wait_for(lambda: self._unwritten.keys().isdisjoint(groups))
        return self._unwritten.keys().isdisjoint(groups)

    async def run(self) -> None:
        """Write whatever changes, for ever."""
        away = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            away = not await self._write(away)
            async with self._written:
                self._written.notify_all()
            if away:
                await asyncio.sleep(_PAUSE)
                self._changed.set()

    async def _write(self, away: bool) -> bool:
        """Whether the registry took everything; one that was `away` is not news."""
        for group, entry in list(self._unwritten.items()):
            try:
                await (self._registry.remove(group) if entry is None else self._registry.publish(entry))
            except RegistryAwayError as error:
                level = log.debug if away else log.warning
                level("registry not written, will try again", group=group, error=str(error))
                return False
            if self._unwritten.get(group, entry) is entry:
                self._unwritten.pop(group, None)
        return True

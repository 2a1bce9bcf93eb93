"""Writes what routers shall know of the groups, again and again until the registry has it.

A registry that is away delays announcements and breaks nothing. Now and then everything is written once more: a Redis
that was restarted may have lost the latest of it, and routers would never hear of workers that nobody announces.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from shoal.cluster.registry_writer import Registry, RegistryAwayError
from shoal.wire.registry import GroupEntry

log = structlog.get_logger()

ANNOUNCE_AGAIN = 5.0
"""Seconds after which the registry is written anew although nothing changed."""


class Announcer:
    """Belongs to the controller's event loop."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry, self._clock = registry, clock
        self._unwritten: dict[str, GroupEntry | None] = {}
        self._announced: dict[str, GroupEntry] = {}
        self._announced_at = clock()

    async def publish(self, entry: GroupEntry) -> None:
        """The group is like this now."""
        self._unwritten[entry.group] = self._announced[entry.group] = entry
        await self._write()

    async def remove(self, group: str) -> None:
        """The group is no more."""
        self._announced.pop(group, None)
        self._unwritten[group] = None
        await self._write()

    async def tick(self) -> None:
        """Write what could not be written, and everything when it is time."""
        if (now := self._clock()) - self._announced_at >= ANNOUNCE_AGAIN:
            self._announced_at = now
            self._unwritten = {**self._announced, **self._unwritten}
        await self._write()

    async def _write(self) -> None:
        for group, entry in list(self._unwritten.items()):
            try:
                await (self._registry.remove(group) if entry is None else self._registry.publish(entry))
            except RegistryAwayError as error:
                log.warning("registry not written, will try again", group=group, error=str(error))
            else:
                if self._unwritten.get(group) is entry:
                    del self._unwritten[group]

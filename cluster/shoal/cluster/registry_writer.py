"""Writes the cluster registry: the controller's side of `shoal.wire.registry`."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from shoal.router.store.away import ABSENT
from shoal.router.store.connect import connect
from shoal.wire.load import AUTOSCALE_KEY, LOAD_FIELD, LOADS_KEY, AutoscaleEntry, RouterLoad
from shoal.wire.registry import (
    CONTROLLER_KEY,
    DESIRED_KEY,
    GROUPS_KEY,
    Desired,
    GroupEntry,
    decode,
    encode,
    group_key,
)


class RegistryAwayError(Exception):
    """Redis did not take the record now; the same may succeed later."""


class Registry(Protocol):
    """Where groups are announced."""

    async def publish(self, entry: GroupEntry) -> None:
        """Replace the group's record. Raises RegistryAwayError; safe to repeat."""

    async def remove(self, group: str) -> None:
        """The group is no more. Raises RegistryAwayError; safe to repeat."""

    async def last_epoch(self, group: str) -> int:
        """Epoch of the group's record, 0 without one. Raises RegistryAwayError."""

    async def groups(self) -> list[str]:
        """Names of the groups that have a record. Raises RegistryAwayError."""


class RedisRegistry:
    """The registry in Redis. Every command is answered or given up within `timeout` seconds."""

    def __init__(self, url: str, timeout: float = 2.0) -> None:
        self._client: Any = connect(url, timeout=timeout)
        self._read_to = b""

    async def publish(self, entry: GroupEntry) -> None:
        """First the record, then its name in the set: nobody ever finds a name without a record."""
        try:
            await self._client.set(group_key(entry.group), encode(entry))
            await self._client.sadd(GROUPS_KEY, entry.group)
        except ABSENT as error:
            raise RegistryAwayError(f"Redis did not take the record of group {entry.group}: {error}") from error

    async def last_epoch(self, group: str) -> int:
        """A record that is not readable counts as none: it is about to be replaced."""
        try:
            raw = await self._client.get(group_key(group))
        except ABSENT as error:
            raise RegistryAwayError(f"Redis does not answer: {error}") from error
        try:
            return decode(raw if isinstance(raw, bytes) else raw.encode()).epoch if raw is not None else 0
        except ValueError:
            return 0

    async def groups(self) -> list[str]:
        """See `Registry`."""
        names = await self._do(self._client.smembers(GROUPS_KEY))
        return sorted(name.decode() if isinstance(name, bytes) else name for name in names)

    async def remove(self, group: str) -> None:
        """First its name, then the record."""
        await self._do(self._client.srem(GROUPS_KEY, group))
        await self._do(self._client.delete(group_key(group)))

    async def desired(self) -> Desired | None:
        """What was asked for last; None when nothing was, or nothing readable."""
        raw = await self._do(self._client.get(DESIRED_KEY))
        with contextlib.suppress(ValueError):
            return Desired.decode(raw if isinstance(raw, bytes) else raw.encode()) if raw is not None else None
        return None

    async def desire(self, desired: Desired) -> None:
        """Remember what was asked for. Raises RegistryAwayError."""
        await self._do(self._client.set(DESIRED_KEY, desired.encode()))

    async def forget_desired(self) -> None:
        """What is declared at the start counts again. Raises RegistryAwayError."""
        await self._do(self._client.delete(DESIRED_KEY))

    async def loads(self) -> list[RouterLoad]:
        """What routers said since this was asked last, the oldest first; what is not readable is left out. The first
        time: nothing, for who knows how old that is. Raises RegistryAwayError."""
        if not self._read_to:
            newest = await self._do(self._client.xrevrange(LOADS_KEY, count=1))
            self._read_to = newest[0][0] if newest else b"0-0"
            return []
        entries = await self._do(self._client.xrange(LOADS_KEY, min=b"(" + self._read_to))
        loads = []
        for self._read_to, fields in entries:
            with contextlib.suppress(ValueError):
                loads.append(RouterLoad.decode(fields.get(LOAD_FIELD, b"")))
        return loads

    async def autoscale(self) -> AutoscaleEntry | None:
        """What an autoscaler said last; None: nothing, or nothing readable. Raises RegistryAwayError."""
        raw = await self._do(self._client.get(AUTOSCALE_KEY))
        with contextlib.suppress(ValueError):
            return AutoscaleEntry.decode(raw) if raw is not None else None
        return None

    async def tell_autoscale(self, entry: AutoscaleEntry) -> None:
        """What the autoscaler sees and decided last. Raises RegistryAwayError."""
        await self._do(self._client.set(AUTOSCALE_KEY, entry.encode()))

    async def forget_autoscale(self) -> None:
        """There is none. Raises RegistryAwayError."""
        await self._do(self._client.delete(AUTOSCALE_KEY))

    async def announce_controller(self, address: str) -> None:
        """Where the admin API listens. Raises RegistryAwayError."""
        await self._do(self._client.set(CONTROLLER_KEY, address))

    @staticmethod
    async def _do(command: Any) -> Any:
        try:
            return await command
        except ABSENT as error:
            raise RegistryAwayError(f"Redis does not answer: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

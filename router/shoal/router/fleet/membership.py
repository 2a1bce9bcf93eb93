"""Who the workers are: those named in the configuration and those in the registry, which is read again and again.

While Redis is away the last known members stay: a router never forgets its workers because it lost sight of a list.
A Redis that came back without its data is empty for a moment, until the controller announces everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from shoal.router.fleet.pool import Member
from shoal.router.store.away import ABSENT
from shoal.router.store.script import Client
from shoal.wire import registry
from shoal.wire.registry import GroupEntry

FORGET_SECONDS = 15.0
"""How long a registry without any group may be a mistake."""

_log = structlog.get_logger(__name__)


def members_of(groups: Iterable[GroupEntry], fixed: Sequence[str], wanted_groups: Sequence[str] = ()) -> list[Member]:
    """The workers to connect to. Those of a group that is not ready, and those that drain, are connected but get no
    work; what runs on the latter goes on elsewhere.

    >>> entry = registry.GroupEntry("g", 1, False, (registry.WorkerEntry("w", 0, "h:1"),))
    >>> members_of([entry], ["h:2"])
    [Member(address='h:2', ready=True, draining=False), Member(address='h:1', ready=False, draining=False)]
    """
    members = {address: Member(address) for address in fixed}
    for group in groups:
        if wanted_groups and group.group not in wanted_groups:
            continue
        for worker in group.workers:
            members.setdefault(worker.address, Member(worker.address, group.ready, worker.draining))
    return list(members.values())


async def read_groups(client: Client) -> list[GroupEntry]:
    """All records of the registry; unreadable ones are reported and left out. Raises redis.RedisError, OSError."""
    asked: Any = client.smembers(registry.GROUPS_KEY)
    names = sorted(name.decode(errors="replace") for name in await asked)
    pipeline: Any = client.pipeline(transaction=False)
    for name in names:
        pipeline.get(registry.group_key(name))
    groups = []
    for name, raw in zip(names, await pipeline.execute() if names else [], strict=True):
        try:
            if raw is not None:
                groups.append(registry.decode(raw))
        except ValueError as error:
            _log.error("registry_record_unreadable", group=name, problem=str(error))
    return groups


class Membership:
    """Watches the registry and tells a pool. `age` is the time since it was last read."""

    def __init__(
        self,
        tell: Callable[[Sequence[Member]], None],
        clock: Callable[[], float],
        *,
        fixed: Sequence[str] = (),
        wanted_groups: Sequence[str] = (),
    ) -> None:
        """`tell` is called at once with the fixed members and again whenever they change."""
        self._tell, self._clock = tell, clock
        self._fixed, self._wanted_groups = fixed, wanted_groups
        self._read_at = self._found_at = clock()
        self._known: list[Member] | None = None
        self._update([])

    @property
    def age(self) -> float:
        """Seconds since the registry was last read."""
        return self._clock() - self._read_at

    async def watch(self, client: Client, period: float) -> None:
        """Read every `period` seconds, for ever."""
        away = False
        while True:
            try:
                groups = await read_groups(client)
                self._read_at = self._clock()
                self._found_at = self._read_at if groups else self._found_at
                if groups or self._read_at - self._found_at >= FORGET_SECONDS:
                    self._update(groups)
                if away:
                    _log.info("registry_back")
                away = False
            except ABSENT as error:
                if not away:
                    _log.warning("registry_away", problem=type(error).__name__, kept=len(self._known or []))
                away = True
            await asyncio.sleep(period)

    def _update(self, groups: Iterable[GroupEntry]) -> None:
        members = members_of(groups, self._fixed, self._wanted_groups)
        if members != self._known:
            self._known = members
            self._tell(members)

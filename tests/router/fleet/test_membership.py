"""Who the workers are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import redis

from shoal.cluster.embedded_redis import EmbeddedRedis
from shoal.router.fleet.membership import Membership, members_of
from shoal.router.fleet.pool import Member
from shoal.router.sessions.redis_store import connect
from shoal.wire.registry import GROUPS_KEY, GroupEntry, WorkerEntry, encode, group_key
from tests.router.talking import until


def group(name: str, *addresses: str, ready: bool = True) -> GroupEntry:
    """A group of workers at the addresses."""
    workers = tuple(WorkerEntry(f"{name}-{i}", i, address) for i, address in enumerate(addresses))
    return GroupEntry(name, 1, ready, workers)


def write(url: str, *groups: GroupEntry) -> None:
    """As the controller does."""
    client = redis.Redis.from_url(url)
    for entry in groups:
        client.set(group_key(entry.group), encode(entry))
        client.sadd(GROUPS_KEY, entry.group)
    client.close()


class Heard:
    """Keeps what a membership told."""

    def __init__(self) -> None:
        self.members: list[list[Member]] = []

    def __call__(self, members: Sequence[Member]) -> None:
        self.members.append(list(members))


def test_configured_workers_come_first_and_always_work() -> None:
    """A worker named by configuration gets work even when its group is said not to be ready."""
    members = members_of([group("g", "h:1", "h:2", ready=False)], ["h:2"])

    assert members == [Member("h:2"), Member("h:1", ready=False)]


def test_only_wanted_groups_count() -> None:
    """With groups named, others are as if they did not exist."""
    members = members_of([group("a", "h:1"), group("b", "h:2")], [], ["b"])

    assert members == [Member("h:2")]


async def test_changes_of_the_registry_are_told_once(redis_url: str) -> None:
    """What the controller writes arrives within a poll; what stays the same is not told again."""
    heard, client = Heard(), connect(redis_url)
    membership = Membership(heard, lambda: 0.0)
    watching = asyncio.create_task(membership.watch(client, 0.01))
    write(redis_url, group("g", "h:1", ready=False))
    await until(lambda: heard.members[-1] == [Member("h:1", ready=False)])
    write(redis_url, group("g", "h:1", "h:2"))
    await until(lambda: heard.members[-1] == [Member("h:1"), Member("h:2")])
    await asyncio.sleep(0.05)
    watching.cancel()
    await client.aclose()

    assert len(heard.members) == 3


async def test_the_last_known_members_stay_while_redis_is_away(tmp_path: Path) -> None:
    """Losing the registry loses no worker; once it is back, changes are seen again."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        heard, client = Heard(), connect(server.url)
        write(server.url, group("g", "h:1"))
        membership = Membership(heard, lambda: 0.0, fixed=["h:9"])
        watching = asyncio.create_task(membership.watch(client, 0.01))
        await until(lambda: heard.members[-1] == [Member("h:9"), Member("h:1")])
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.1)
        assert heard.members[-1] == [Member("h:9"), Member("h:1")]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await client.aclose()


async def test_an_unreadable_record_hides_nobody_else(redis_url: str) -> None:
    """A broken record is left out, the other groups are read."""
    client = redis.Redis.from_url(redis_url)
    client.set(group_key("broken"), b"\xff")
    client.sadd(GROUPS_KEY, "broken", "gone")
    client.close()
    write(redis_url, group("g", "h:1"))
    heard, reading = Heard(), connect(redis_url)
    watching = asyncio.create_task(Membership(heard, lambda: 0.0).watch(reading, 0.01))
    await until(lambda: heard.members[-1] == [Member("h:1")])
    watching.cancel()
    await reading.aclose()


async def test_a_registry_that_lost_everything_is_not_believed_at_once(redis_url: str) -> None:
    """Members stay while the controller may still announce them again; later an empty registry means nobody."""
    heard, client = Heard(), connect(redis_url)
    now = 0.0
    membership = Membership(heard, lambda: now)
    write(redis_url, group("g", "h:1"))
    watching = asyncio.create_task(membership.watch(client, 0.01))
    try:
        await until(lambda: heard.members[-1] == [Member("h:1")])
        await client.flushall()
        await asyncio.sleep(0.1)
        assert heard.members[-1] == [Member("h:1")]
        now = 15.0
        await until(lambda: heard.members[-1] == [])
        write(redis_url, group("g", "h:2"))
        await until(lambda: heard.members[-1] == [Member("h:2")])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await client.aclose()

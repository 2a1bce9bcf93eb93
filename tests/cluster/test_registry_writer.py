"""Writing the registry into a real Redis."""

from __future__ import annotations

import pytest
import redis

from shoal.cluster.registry_writer import RedisRegistry, RegistryAwayError
from shoal.wire.registry import GROUPS_KEY, GroupEntry, WorkerEntry, decode, group_key

ENTRY = GroupEntry("g0", 3, True, (WorkerEntry("g0-0", 0, "127.0.0.1:1"),))


async def test_a_record_is_written_with_its_name(redis_url: str) -> None:
    """Routers find the group's name in the set and its record under the key."""
    registry = RedisRegistry(redis_url)
    await registry.publish(ENTRY)
    await registry.close()
    with redis.Redis.from_url(redis_url) as client:
        assert client.smembers(GROUPS_KEY) == {b"g0"}
        raw = client.get(group_key("g0"))
    assert isinstance(raw, bytes)
    assert decode(raw) == ENTRY


async def test_the_last_epoch_survives(redis_url: str) -> None:
    """A new controller goes on counting where the last one was; without a readable record it begins."""
    registry = RedisRegistry(redis_url)
    assert await registry.last_epoch("g0") == 0
    await registry.publish(ENTRY)
    assert await registry.last_epoch("g0") == 3
    with redis.Redis.from_url(redis_url) as client:
        client.set(group_key("g0"), b"not a record")
    assert await registry.last_epoch("g0") == 0
    await registry.close()


async def test_a_redis_that_is_away_is_a_typed_error() -> None:
    """Nothing else escapes, so the controller can try again."""
    registry = RedisRegistry("unix:///nowhere/redis.sock", timeout=0.2)
    with pytest.raises(RegistryAwayError):
        await registry.publish(ENTRY)
    with pytest.raises(RegistryAwayError):
        await registry.last_epoch("g0")
    await registry.close()

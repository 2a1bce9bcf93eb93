"""Quotas while Redis is away, silent, and back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import pytest
import redis.asyncio

from shoal.router.errors import QuotaError
from shoal.router.limits.config import LimitsConfig
from shoal.router.limits.ledger import Levels, LocalLedger, RedisLedger, Refused, Scope
from shoal.router.limits.policy import Policies
from shoal.router.limits.quota import Quotas
from tests.router.limits.test_quota import ACME, granted, quotas


async def test_without_redis_each_router_grants_its_part() -> None:
    """Four routers that cannot see each other never grant more than the whole limit together."""
    away = redis.asyncio.Redis.from_url("redis://127.0.0.1:1")
    routers = [quotas(RedisLedger(away), requests_per_minute=100, routers=4) for _ in range(4)]
    counts = [await granted(router, 40) for router in routers]
    await away.aclose()

    assert counts == [25, 25, 25, 25]


async def test_local_ledgers_forget_nobody_who_runs() -> None:
    """Who was away for a minute is as if he had never been there, but for what still runs."""
    now = [0]
    ledger, scopes = LocalLedger(1, lambda: now[0]), (Scope("", 2, 0, 1),)
    assert not isinstance(await ledger.begin("t", scopes, "a"), Refused)
    now[0] = 61_000
    ledger.tidy()
    assert isinstance(await ledger.begin("t", scopes, "b"), Refused)
    await ledger.end("t", scopes, "a")
    now[0] = 122_000
    ledger.tidy()
    assert ledger._accounts == {}
    assert not isinstance(await ledger.begin("t", scopes, "b"), Refused)


class Switched(RedisLedger):
    """A shared ledger whose Redis is here, gone, or silent."""

    state, asked = "here", 0

    async def begin(self, tenant: str, scopes: Sequence[Scope], lease: str) -> Refused | Levels:
        """See `Ledger`."""
        await self._reach()
        return await super().begin(tenant, scopes, lease)

    async def spend(self, tenant: str, scopes: Sequence[Scope], tokens: int, *, owed: bool) -> Refused | Levels:
        """See `Ledger`."""
        await self._reach()
        return await super().spend(tenant, scopes, tokens, owed=owed)

    async def end(self, tenant: str, scopes: Sequence[Scope], lease: str) -> None:
        """See `Ledger`."""
        await self._reach()
        await super().end(tenant, scopes, lease)

    async def _reach(self) -> None:
        self.asked += 1
        if self.state == "gone":
            raise redis.ConnectionError
        if self.state == "silent":
            await asyncio.Event().wait()


async def test_when_redis_dies_in_the_middle_no_more_is_granted_than_was_left(client: redis.asyncio.Redis) -> None:
    """Four routers each go on with their part of what was left, not of the whole; nor do places double."""
    shared = Switched(client)
    routers = [quotas(shared, requests_per_minute=100, concurrent=8, routers=4) for _ in range(4)]
    began = time.monotonic()
    before = sum([await granted(router, 15) for router in routers])
    async with contextlib.AsyncExitStack() as stack:
        for n, router in enumerate(routers):
            for place in range(2):
                await stack.enter_async_context(router.allowed(ACME, f"{n}-{place}", None))
        shared.state = "gone"
        for router in routers:
            with pytest.raises(QuotaError, match="requests at once"):
                await stack.enter_async_context(router.allowed(ACME, "third", None))
    after = sum([await granted(router, 30) for router in routers])
    stale = (6 + 4 + 2) // 4  # what the others took since a router last heard what was left
    refilled = int((time.monotonic() - began) * 100 / 60) + 1

    assert before == 60
    assert 28 <= after <= 32 + stale + refilled


async def test_what_one_ledger_gave_the_other_does_not_get_back(client: redis.asyncio.Redis) -> None:
    """A request that began while Redis was away and ends when it is back leaves no place behind in the router, and
    fills no bucket in Redis."""
    shared, clock = Switched(client), [0.0]
    config = LimitsConfig(tokens_per_minute=1000, concurrent=1, tolerance=10_000)
    quota = Quotas(config, Policies(config), shared, lambda: clock[0])
    async with quota.allowed(ACME, "uses it up", None) as allowance:
        await allowance.prompt(1000, 0)
    shared.state, clock[0] = "gone", 60.0
    async with quota.allowed(ACME, "meanwhile", None) as allowance:
        await allowance.prompt(10, 500)
        shared.state, clock[0] = "here", 62.0
    with pytest.raises(QuotaError, match="tokens per minute"):
        async with quota.allowed(ACME, "back", None) as allowance:
            await allowance.prompt(400, 0)
    shared.state, clock[0] = "gone", 120.0
    async with quota.allowed(ACME, "away again", None):
        pass


async def test_what_runs_is_known_again_when_redis_is_back(client: redis.asyncio.Redis) -> None:
    """What began meanwhile takes its place there, too."""
    shared, clock = Switched(client), [0.0]
    config = LimitsConfig(concurrent=2, routers=1, tolerance=10_000)
    quota = Quotas(config, Policies(config), shared, lambda: clock[0])
    shared.state = "gone"
    async with quota.allowed(ACME, "a", None), quota.allowed(ACME, "b", None):
        shared.state, clock[0] = "here", 2.0
        assert await granted(quota, 1) == 1  # finds out that it is back, before that is told there
        assert await granted(quota, 1) == 0
    assert await client.zcard("shoal:quota:{acme}::running") == 0


async def test_a_silent_redis_is_waited_for_once_a_second(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request finds out; those after it are counted here without waiting, until it is looked for again."""
    monkeypatch.setattr("shoal.router.limits.quota._PATIENCE", 0.05)
    shared, clock = Switched(client), [0.0]
    config = LimitsConfig(requests_per_minute=1000)
    quota = Quotas(config, Policies(config), shared, lambda: clock[0])
    shared.state = "silent"
    assert await granted(quota, 20, tokens=5) == 20
    assert shared.asked == 1
    monkeypatch.setattr("shoal.router.limits.quota._PATIENCE", 30.0)
    shared.state, clock[0] = "here", 1.5
    assert await granted(quota, 20) == 20
    assert shared.asked == 1 + 40

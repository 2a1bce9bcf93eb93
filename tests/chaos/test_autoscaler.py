"""The autoscaler on real workers, router and Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from shoal.cluster.autoscale import AutoscalePolicy
from shoal.cluster.autoscaler import Autoscaler
from shoal.cluster.group_state import Phase
from shoal.cluster.registry_writer import RedisRegistry
from shoal.wire.registry import Desired
from tests.chaos.town import Town, town
from tests.chaos.workers import Storm, under_load

QUICK = AutoscalePolicy(
    enabled=True, most=2, queue_seconds=0.02, first_token_seconds=60.0, up_after=1.0, down_after=1.0, rest=1.0
)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # nobody else is told
            await asyncio.sleep(0.02)


async def test_load_brings_a_group_and_its_end_takes_it_away(tiny_model: Path, redis_url: str) -> None:
    """Twelve streams on a worker that runs two at once: a second group comes and serves. One stream alone: it goes, and
    that stream goes on. No request fails, and every token is as undisturbed."""
    async with town(tiny_model, redis_url, ep_size=1, max_batch_size=2) as t:
        registry, desired = RedisRegistry(redis_url), Desired(1, 1)

        async def want(wanted: Desired) -> str:
            nonlocal desired
            desired = wanted
            await t.controller.scale(wanted.ep_size, wanted.groups, t.policy, 5.0)
            return ""

        scaler = Autoscaler(QUICK, t.controller, registry, lambda: desired, want)
        looking = asyncio.create_task(scaler.run())
        try:
            (await under_load(t, 12, 64, lambda storm: until(lambda: served(t) == 2))).check()
            busy = await registry.autoscale()
            assert busy is not None
            assert (1, 2) == (busy.before, busy.after)

            async def gone(storm: Storm) -> None:
                await until(lambda: t.controller.groups["g1"].phase is Phase.STOPPED and served(t) == 1)

            (await under_load(t, 1, 32, gone)).check()
            assert ["g0"] == await registry.groups()
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            await registry.close()


def served(t: Town) -> int:
    """Workers that the router can give work to."""
    return len(t.router.pool.eligible())

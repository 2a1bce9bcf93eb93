"""The shared index of prompts' beginnings, in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.cache.prefixes import PIECE, Prefixes, names_of
from shoal.router.errors import SessionsAwayError
from shoal.router.fleet.scripted_worker import saying
from shoal.router.store.connect import connect
from shoal.router.tokenizer import Tokenizer
from tests.router.conftest import StartCluster
from tests.router.talking import events_of


@pytest.fixture
async def prefixes(redis_url: str) -> AsyncIterator[Prefixes]:
    """A forgetful index."""
    client = connect(redis_url)
    yield Prefixes(client, seconds=0.3)
    await client.aclose()


async def test_the_longest_beginning_counts(prefixes: Prefixes) -> None:
    """Who computed more of it is said to have more; who computed something else is not named."""
    long = list(range(3 * PIECE + 5))
    await prefixes.add("a", names_of(long, b"t"))
    await prefixes.add("b", names_of(long[:PIECE], b"t"))
    await prefixes.add("c", names_of(reversed(long), b"t"))

    assert await prefixes.find(names_of([*long, 7], b"t")) == {"a": 3 * PIECE, "b": PIECE}
    assert await prefixes.find(names_of(long[: PIECE - 1], b"t")) == {}


async def test_tenants_do_not_meet(prefixes: Prefixes) -> None:
    """The same words under another salt are other names."""
    await prefixes.add("a", names_of(range(PIECE), b"t"))

    assert await prefixes.find(names_of(range(PIECE), b"u")) == {}


async def test_a_beginning_is_forgotten(prefixes: Prefixes) -> None:
    """Unless somebody computes it again."""
    names = names_of(range(PIECE), b"t")
    await prefixes.add("a", names)
    await asyncio.sleep(0.35)

    assert await prefixes.find(names) == {}


async def test_the_index_is_bounded(prefixes: Prefixes) -> None:
    """The last few workers of a beginning, and the first pieces of a prompt."""
    names = names_of(range(PIECE), b"t")
    for i in range(20):
        await prefixes.add(f"w{i:02}", names)
        await asyncio.sleep(0.002)
    found: Any = await prefixes.find(names)

    assert sorted(found) == [f"w{i:02}" for i in range(12, 20)]
    assert len(names_of(range(100 * PIECE), b"t")) == 64


async def test_without_redis_there_is_no_hint() -> None:
    """The same typed error as everywhere."""
    client = connect("unix:///nowhere/redis.sock")
    with pytest.raises(SessionsAwayError):
        await Prefixes(client).find(names_of(range(PIECE), b"t"))
    await client.aclose()


async def test_routers_tell_what_workers_computed(
    start_cluster: StartCluster, tokenizer: Tokenizer, redis_url: str
) -> None:
    """After a request the index names its worker for the beginning of its prompt."""
    said = saying(tokenizer.encode("x"))
    cluster = await start_cluster(said, redis_url=redis_url, share_prefixes=True)
    await events_of(cluster.front.inference.Generate(api.GenerateRequest(text="y" * 600)))
    client = connect(redis_url)
    names = names_of(tokenizer.encode("y" * 600), cluster.worker.submits[0].cache_salt)
    found: Any = {}
    async with asyncio.timeout(5):
        while not found:
            found = await Prefixes(client).find(names)

    assert found == {"w0": 2 * PIECE}
    await client.aclose()

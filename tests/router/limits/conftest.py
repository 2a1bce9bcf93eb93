"""A client of the test's Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A real server."""
    made = redis.asyncio.Redis.from_url(redis_url)
    yield made
    await made.aclose()

"""What callers are told when Redis does not do what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import redis

from shoal.router.errors import SessionsAwayError

RETRY_AFTER_MS = 1_000

_LONGEST = 3.0  # seconds, however many nodes a client asks for the way

ABSENT = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)
"""Whatever a client raises when the server is away, full, or not what it should be. A whole cluster that is away is no
RedisError."""


@asynccontextmanager
async def answering(what: str) -> AsyncGenerator[None, None]:
    """Turns whatever the client raises into SessionsAwayError; `what` is plural, such as "sessions"."""
    try:
        async with asyncio.timeout(_LONGEST):
            yield
    except redis.OutOfMemoryError as error:
        raise SessionsAwayError(f"{what} cannot be written: Redis is full", retry_after_ms=RETRY_AFTER_MS) from error
    except ABSENT as error:
        kind = type(error).__name__
        raise SessionsAwayError(f"{what} cannot be reached ({kind})", retry_after_ms=RETRY_AFTER_MS) from error

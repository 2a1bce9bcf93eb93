"""Whether the Redis that was configured is there and is one that we can use, asked once at the start."""

from __future__ import annotations

import asyncio
from typing import Any

import redis
import structlog
from redis.asyncio.cluster import RedisCluster

from shoal.router.store.away import ABSENT
from shoal.router.store.script import Client

VERSION_FLOOR = (7, 0)
"""Oldest server whose scripts and expiry options we use."""

_log = structlog.get_logger(__name__)


class RedisNotReadyError(Exception):
    """It does not answer, refuses us, or is too old. The message shows no password."""


async def require_ready(client: Client, seconds: float) -> None:
    """Wait until it answers, at most `seconds`. Raises RedisNotReadyError.

    Warns when the server may throw away what was stored: a session store must not.
    """
    loop = asyncio.get_running_loop()
    give_up, pause = loop.time() + seconds, 0.05
    while True:
        try:
            server = await _info(client, "server")
            memory = await _info(client, "memory")
            break
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise RedisNotReadyError(f"it refuses our credentials ({type(error).__name__})") from error
        except ABSENT as error:
            if loop.time() + pause > give_up:
                raise RedisNotReadyError(f"it does not answer ({_kind(error)}); waited {seconds:g} s") from error
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_FLOOR:
        floor = ".".join(map(str, VERSION_FLOOR))
        raise RedisNotReadyError(f"it is version {version}, need {floor} or newer")
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if int(memory.get("maxmemory", 0)) and policy != "noeviction":
        _log.warning("redis_evicts", policy=policy, advice="set maxmemory-policy noeviction, or sessions get lost")


async def _info(client: Client, section: str) -> dict[str, Any]:
    asked: Any = client
    if isinstance(client, RedisCluster):
        answer: dict[str, Any] = await asked.info(section, target_nodes=RedisCluster.RANDOM)
    else:
        answer = await asked.info(section)
    return answer


def _kind(error: BaseException) -> str:
    """What happened, without the text, which may show where and as whom we connect."""
    cause = error.__cause__
    return type(error).__name__ if cause is None else f"{type(error).__name__}: {type(cause).__name__}"

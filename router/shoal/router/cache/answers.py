"""Answers that were given, by everything that they depend on.

    shoal:answers:{tenant}          hash: name of a request -> its tokens
    shoal:answers:{tenant}:times    sorted set: names by the millisecond of their storing
    shoal:answers:{tenant}:sizes    hash: bytes by name, and their sum

A tenant's answers are bounded in number of bytes and in age; the oldest go first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoal.proto.v1.journal_pb2 import JournalTokens
from shoal.router.store.away import answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Client, Script

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: answers, times. ARGV: name, longest age ms.
_GET = Script(
    _NOW
    + """
local stored = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not stored or now - tonumber(stored) > tonumber(ARGV[2]) then return false end
return redis.call('HGET', KEYS[1], ARGV[1])
"""
)

# KEYS: answers, times, sizes. ARGV: name, value, longest age ms, most bytes.
_PUT = Script(
    _NOW
    + """
local function drop(name)
  redis.call('HINCRBY', KEYS[3], '', -tonumber(redis.call('HGET', KEYS[3], name) or '0'))
  redis.call('HDEL', KEYS[3], name)
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
redis.call('HSETNX', KEYS[3], '', 0)
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then drop(ARGV[1]) end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])) do drop(name) end
local room = tonumber(ARGV[4]) - #ARGV[2]
if room < 0 then return 0 end
while tonumber(redis.call('HGET', KEYS[3], '')) > room do
  drop(redis.call('ZRANGE', KEYS[2], 0, 0)[1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], #ARGV[2])
redis.call('HINCRBY', KEYS[3], '', #ARGV[2])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
return 1
"""
)


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What is kept of each tenant."""

    seconds: float = 3600.0
    most_bytes: int = 16 * 2**20


class Answers:
    """Answers of all tenants. Every method raises SessionsAwayError when Redis does not answer."""

    def __init__(self, client: Client, limits: AnswerLimits | None = None) -> None:
        self._client, self.limits = client, limits or AnswerLimits()

    async def get(self, tenant: str, name: str) -> tuple[JournalTokens, ...] | None:
        """What was answered to the request of that name; None when it is not known, or no longer."""
        answers, times, _ = _keys(tenant)
        async with answering("answers"):
            raw: Any = await _GET.run(self._client, [answers, times], (name, int(self.limits.seconds * 1000)))
        return None if raw is None else unpack(raw)

    async def put(self, tenant: str, name: str, tokens: Sequence[JournalTokens]) -> None:
        """Keep an answer, in the place of the oldest ones if need be; one that is too large alone is not kept."""
        arguments = (name, _pack(tokens), int(self.limits.seconds * 1000), self.limits.most_bytes)
        async with answering("answers"):
            await _PUT.run(self._client, _keys(tenant), arguments)


def _keys(tenant: str) -> list[str]:
    key = tagged("answers", tenant)
    return [key, f"{key}:times", f"{key}:sizes"]


def _pack(tokens: Sequence[JournalTokens]) -> bytes:
    parts = [entry.SerializeToString() for entry in tokens]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unpack(raw: bytes) -> tuple[JournalTokens, ...]:
    """An answer as it is kept."""
    found, place = [], 0
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "big")
        found.append(JournalTokens.FromString(raw[place + 4 : place + 4 + size]))
        place += 4 + size
    return tuple(found)

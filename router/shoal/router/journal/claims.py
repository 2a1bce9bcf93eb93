"""Which request an idempotency key stands for.

    shoal:idempotency:{tenant:key}    hash: work, digest, at (the server's milliseconds)

The first to claim a key is the request; whoever claims it again is told which request that is. A claim lives as long as
requests are kept after their end.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.router.store.away import answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Client, Script

_CLAIM = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('HMGET', KEYS[1], 'work', 'digest', 'at')
if found[1] and found[1] ~= ARGV[4] then return {found[1], found[2], now - tonumber(found[3])} end
redis.call('HSET', KEYS[1], 'work', ARGV[1], 'digest', ARGV[2], 'at', now)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {ARGV[1], ARGV[2], 0}
""")

_DROP = Script("""
if redis.call('HGET', KEYS[1], 'work') == ARGV[1] then redis.call('DEL', KEYS[1]) end
""")


@dataclass(frozen=True, slots=True)
class Claimed:
    """Whose a key is."""

    work_id: str
    digest: str
    """Of what was asked."""
    age_seconds: float


class Claims:
    """Keys by tenant. Every method raises SessionsAwayError when Redis does not answer."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def claim(
        self, tenant: str, key: str, work_id: str, digest: str, seconds: float, instead_of: str = ""
    ) -> Claimed:
        """Whose the key is: `work_id`'s, for so many seconds, unless somebody had it before. `instead_of` names a
        request that is given up and whose place is taken."""
        arguments = (work_id, digest, int(seconds * 1000), instead_of)
        async with answering("idempotency keys"):
            work, found, age = await _CLAIM.run(self._client, [_key(tenant, key)], arguments)
        return Claimed(work.decode(), found.decode(), int(age) / 1000)

    async def drop(self, tenant: str, key: str, work_id: str) -> None:
        """The request came to nothing: the key is free again, if it is still that request's."""
        async with answering("idempotency keys"):
            await _DROP.run(self._client, [_key(tenant, key)], [work_id])


def _key(tenant: str, key: str) -> str:
    return tagged("idempotency", tenant, key)

"""Stored responses: what `GET /v1/responses/{id}` reads and `previous_response_id` continues from.

    shoal:response:{tenant:id}          JSON of a `Record`
    shoal:response:{tenant:id}:next     who continues the conversation in the same session; everybody else branches off
    shoal:response:{tenant:id}:alive    expires when the router that runs it in the background is gone
    shoal:response:{tenant:id}:cancel   somebody wants it to stop
    shoal:response:{tenant:id}:over     nothing changes any more
    shoal:response:{tenant:id}:events   what a stream tells, see events.py

The conversation itself is a session of the one session store; a record says which, and up to which turn. All keys of a
response share a hash tag and expire; tenant and id are percent-encoded, so no name reaches another's key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.router.errors import SessionsAwayError
from shoal.router.http.responses.events import Events
from shoal.router.store.away import answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Argument, Client, Script

_ALIVE_SECONDS = 15
_WHAT = "stored responses"

# KEYS: record, over. ARGV: record, ttl, 1 if only in place of one, 1 if it is over. What is over stays as it is, so
# that of two routers that believe to work on a response the later one cannot change what was told of it.
_SAVE = Script("""
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
if ARGV[4] == '1' then
  redis.call('SET', KEYS[2], 1, 'EX', ARGV[2])
end
return 1
""")


@dataclass(frozen=True, slots=True)
class Record:
    """One stored response."""

    response: dict[str, Any]
    session_id: str
    """The conversation that it is part of."""
    turn: int = -1
    """Its turn there; -1 while it is not part of it."""
    instructions: str = ""
    """Instructions in force in the session."""
    items: list[dict[str, Any]] = field(default_factory=list)
    """What was said to it."""
    streamed: bool = False
    """Whether its events are kept."""
    body: dict[str, Any] | None = None
    """What was asked, for whichever router goes on with it; None: nobody may."""

    @property
    def over(self) -> bool:
        """Whether nothing changes any more."""
        return self.response["status"] not in ("queued", "in_progress")


class Records:
    """Responses by tenant and id. Every method raises SessionsAwayError when the store does not answer."""

    def __init__(self, client: Client, ttl_seconds: int) -> None:
        """A response is kept for `ttl_seconds`, as sessions are."""
        self._client: Any = client
        self.events = Events(client)
        self.ttl_seconds = ttl_seconds

    async def load(self, tenant: str, response_id: str) -> Record | None:
        """The response, or None when it was never stored, expired or was deleted."""
        async with answering(_WHAT):
            raw = await self._client.get(_key(tenant, response_id))
        return None if raw is None else Record(**json.loads(raw))

    async def exists(self, tenant: str, response_id: str) -> bool:
        """Whether `load` would find one."""
        async with answering(_WHAT):
            return bool(await self._client.exists(_key(tenant, response_id)))

    async def save(self, tenant: str, record: Record, *, existing: bool = False) -> bool:
        """Store it, in place of what was there. `existing`: only if something was, so that deleted ones stay gone.

        False when it was not stored: it was deleted, or it was over already.
        """
        raw = json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))
        key = _key(tenant, record.response["id"])
        arguments: list[Argument] = [raw, self.ttl_seconds, int(existing), int(record.over)]
        async with answering(_WHAT):
            return bool(await _SAVE.run(self._client, [key, f"{key}:over"], arguments))

    async def are_here(self) -> bool:
        """Whether the store answers."""
        try:
            async with answering(_WHAT):
                await self._client.ping()
        except SessionsAwayError:
            return False
        return True

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Remove it; False when there was nothing."""
        key = _key(tenant, response_id)
        async with answering(_WHAT):
            removed: int = await self._client.delete(key)
            await self._client.delete(*(f"{key}:{part}" for part in ("next", "alive", "cancel", "over", "events")))
        return removed > 0

    async def claim_next(self, tenant: str, response_id: str, by: str) -> bool:
        """Whether `by` is the first to continue from it."""
        async with answering(_WHAT):
            return bool(await self._client.set(f"{_key(tenant, response_id)}:next", by, ex=self.ttl_seconds, nx=True))

    async def stay_alive(self, tenant: str, response_id: str) -> bool:
        """Say that it is still being worked on here; returns whether somebody wants it to stop."""
        key = _key(tenant, response_id)
        async with answering(_WHAT):
            pipeline: Any = self._client.pipeline(transaction=False)
            _, wanted = await pipeline.set(f"{key}:alive", 1, ex=_ALIVE_SECONDS).exists(f"{key}:cancel").execute()
        return bool(wanted)

    async def let_go(self, tenant: str, response_id: str) -> None:
        """Say that nobody works on it any more, so that somebody else may."""
        async with answering(_WHAT):
            await self._client.delete(f"{_key(tenant, response_id)}:alive")

    async def is_alive(self, tenant: str, response_id: str) -> bool:
        """Whether a router still works on it."""
        async with answering(_WHAT):
            return bool(await self._client.exists(f"{_key(tenant, response_id)}:alive"))

    async def ask_to_stop(self, tenant: str, response_id: str) -> None:
        """Whichever router works on it hears of it soon."""
        async with answering(_WHAT):
            await self._client.set(f"{_key(tenant, response_id)}:cancel", 1, ex=_ALIVE_SECONDS)


def _key(tenant: str, response_id: str) -> str:
    """
    >>> _key("a:b", "resp_1")
    'shoal:response:{a%3Ab:resp_1}'
    """
    return tagged("response", tenant, response_id)

"""Stored responses: what `GET /v1/responses/{id}` reads and `previous_response_id` continues from.

    shoal:response:{tenant:id}          JSON of a `Record`
    shoal:response:{tenant:id}:next     who continues the conversation in the same session; everybody else branches off
    shoal:response:{tenant:id}:alive    expires when the router that runs it in the background is gone
    shoal:response:{tenant:id}:cancel   somebody wants it to stop

The conversation itself is a session of the one session store; a record says which, and up to which turn. All keys of a
response share a hash tag and expire; tenant and id are percent-encoded, so no name reaches another's key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.router.store.away import answering
from shoal.router.store.keys import tagged
from shoal.router.store.script import Client

_ALIVE_SECONDS = 15


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

    @property
    def over(self) -> bool:
        """Whether nothing changes any more."""
        return self.response["status"] not in ("queued", "in_progress")


class Records:
    """Responses by tenant and id. Every method raises SessionsAwayError when the store does not answer."""

    def __init__(self, client: Client, ttl_seconds: int) -> None:
        """A response is kept for `ttl_seconds`, as sessions are."""
        self._client = client
        self.ttl_seconds = ttl_seconds

    async def load(self, tenant: str, response_id: str) -> Record | None:
        """The response, or None when it was never stored, expired or was deleted."""
        async with answering("stored responses"):
            raw = await self._client.get(_key(tenant, response_id))
        return None if raw is None else Record(**json.loads(raw))

    async def save(self, tenant: str, record: Record, *, existing: bool = False) -> None:
        """Store it, in place of what was there. `existing`: only if something was, so that deleted ones stay gone."""
        raw = json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":"))
        async with answering("stored responses"):
            await self._client.set(_key(tenant, record.response["id"]), raw, ex=self.ttl_seconds, xx=existing)

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Remove it; False when there was nothing."""
        key = _key(tenant, response_id)
        async with answering("stored responses"):
            removed: int = await self._client.delete(key)
            await self._client.delete(f"{key}:next", f"{key}:alive", f"{key}:cancel")
        return removed > 0

    async def claim_next(self, tenant: str, response_id: str, by: str) -> bool:
        """Whether `by` is the first to continue from it."""
        async with answering("stored responses"):
            return bool(await self._client.set(f"{_key(tenant, response_id)}:next", by, ex=self.ttl_seconds, nx=True))

    async def stay_alive(self, tenant: str, response_id: str) -> bool:
        """Say that it is still being worked on here; returns whether somebody wants it to stop."""
        key = _key(tenant, response_id)
        async with answering("stored responses"):
            pipeline: Any = self._client.pipeline(transaction=False)
            _, wanted = await pipeline.set(f"{key}:alive", 1, ex=_ALIVE_SECONDS).exists(f"{key}:cancel").execute()
        return bool(wanted)

    async def is_alive(self, tenant: str, response_id: str) -> bool:
        """Whether a router still works on it."""
        async with answering("stored responses"):
            return bool(await self._client.exists(f"{_key(tenant, response_id)}:alive"))

    async def ask_to_stop(self, tenant: str, response_id: str) -> None:
        """Whichever router works on it hears of it soon."""
        async with answering("stored responses"):
            await self._client.set(f"{_key(tenant, response_id)}:cancel", 1, ex=_ALIVE_SECONDS)


def _key(tenant: str, response_id: str) -> str:
    return tagged("response", tenant, response_id)

"""Sessions in Redis.

    shoal:session:{tenant:session}         hash: next_turn, created_at, updated_at, ttl, date, writer, tools
    shoal:session:{tenant:session}:items   list: one JSON object per message
    shoal:sessions:{tenant}                sorted set: session names by the microsecond of their last turn

Tenant and session are percent-encoded, so no name can reach another's key. The first two keys share a hash tag and are
changed together by one script. The index is written after it, may lag or lose an entry, and is mended by the next turn
and by reading it; nothing but listing depends on it.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, unquote

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from shoal.router.errors import FieldError, SessionsAwayError, TurnConflictError
from shoal.router.harmony.message import ChatMessage, Rendered
from shoal.router.sessions.store import Session, SessionInfo, StoredItem, Turn

_RETRY_AFTER_MS = 1_000

# KEYS: hash, items. ARGV: expected turn, ttl, date, writer, tools, items... Returns {1, microseconds} or
# {0, turn found}.
# A writer that lost the answer may ask again: its turn is there already and that counts as stored.
_APPEND = """
local found = tonumber(redis.call('HGET', KEYS[1], 'next_turn') or '0')
local expected = tonumber(ARGV[1])
local time = redis.call('TIME')
if found == expected + 1 and redis.call('HGET', KEYS[1], 'writer') == ARGV[4] then
  return {1, redis.call('HGET', KEYS[1], 'updated_at')}
end
if found ~= expected then
  return {0, found}
end
local now = string.format('%d%06d', time[1], time[2])
if expected == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'created_at', now, 'date', ARGV[3])
end
redis.call('HSET', KEYS[1], 'next_turn', expected + 1, 'updated_at', now, 'ttl', ARGV[2], 'writer', ARGV[4])
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'tools', ARGV[5])
end
for i = 6, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {1, now}
"""

# KEYS: index. ARGV: session, microseconds, ttl. The index lives as long as the longest-lived session in it.
_INDEX = """
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
"""

# KEYS: index. ARGV: session, microseconds. Forgets a session that is gone, unless it came back meanwhile.
_FORGET = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
end
"""


def connect(url: str) -> redis.asyncio.Redis:
    """A client that gives up in about a second instead of making a request wait; connects when first used."""
    retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), 2)
    return redis.asyncio.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=1.0, retry=retry)


def session_key(tenant: str, session_id: str) -> str:
    """Key of a session's hash.

    >>> session_key("a:b", "x}y")
    'shoal:session:{a%3Ab:x%7Dy}'
    """
    return f"shoal:session:{{{quote(tenant, safe='')}:{quote(session_id, safe='')}}}"


def index_key(tenant: str) -> str:
    """Key of a tenant's index."""
    return f"shoal:sessions:{{{quote(tenant, safe='')}}}"


class RedisSessions:
    """A `SessionStore` over one client."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._append = client.register_script(_APPEND)
        self._index = client.register_script(_INDEX)
        self._forget = client.register_script(_FORGET)

    async def load(self, tenant: str, session_id: str) -> Session | None:
        """See `SessionStore`."""
        key = session_key(tenant, session_id)
        async with _answering():
            pipeline: Any = self._client.pipeline(transaction=True)
            fields, raw_items, ttl = await pipeline.hgetall(key).lrange(f"{key}:items", 0, -1).ttl(key).execute()
        if not fields:
            return None
        return Session(_info(session_id, fields, ttl), tuple(_decode(raw) for raw in raw_items))

    async def append(self, tenant: str, session_id: str, turn: Turn) -> None:
        """See `SessionStore`."""
        key = session_key(tenant, session_id)
        items = [_encode(StoredItem(message, turn.number)) for message in turn.items]
        arguments: list[int | str | bytes] = [
            turn.number,
            turn.ttl_seconds,
            turn.date,
            turn.writer,
            turn.tools,
            *items,
        ]
        async with _answering():
            stored, value = await self._append(keys=[key, f"{key}:items"], args=arguments)
        if not stored:
            raise TurnConflictError(turn.number, int(value))
        member = quote(session_id, safe="")
        try:
            async with _answering():
                await self._index(keys=[index_key(tenant)], args=[member, value, turn.ttl_seconds])
        except SessionsAwayError:
            pass  # the turn itself is stored; the next one mends the index

    async def page(self, tenant: str, limit: int, token: str) -> tuple[Sequence[SessionInfo], str]:
        """See `SessionStore`. Sessions that expired are left out and forgotten, so a page may be short."""
        below = _read_token(token)
        async with _answering():
            found: Any = await self._client.zrevrangebyscore(
                index_key(tenant), below, "-inf", start=0, num=limit + 1, withscores=True
            )
            shown = [(unquote(member.decode()), score) for member, score in found[:limit]]
            pipeline: Any = self._client.pipeline(transaction=False)
            for session_id, _ in shown:
                key = session_key(tenant, session_id)
                pipeline.hgetall(key).ttl(key)
            answers = await pipeline.execute()
            infos = []
            for (session_id, score), fields, ttl in zip(shown, answers[::2], answers[1::2], strict=True):
                if fields:
                    infos.append(_info(session_id, fields, ttl))
                else:
                    await self._forget(keys=[index_key(tenant)], args=[quote(session_id, safe=""), f"{score:.0f}"])
        return infos, _write_token(shown[-1][1]) if len(found) > limit else ""

    async def delete(self, tenant: str, session_id: str) -> bool:
        """See `SessionStore`."""
        key = session_key(tenant, session_id)
        async with _answering():
            removed: int = await self._client.delete(key, f"{key}:items")
            await self._client.zrem(index_key(tenant), quote(session_id, safe=""))
        return removed > 0


@asynccontextmanager
async def _answering() -> AsyncGenerator[None, None]:
    """Turns whatever the client raises into SessionsAwayError."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        kind = type(error).__name__
        raise SessionsAwayError(f"sessions cannot be reached ({kind})", retry_after_ms=_RETRY_AFTER_MS) from error


def _info(session_id: str, fields: dict[bytes, bytes], ttl: int) -> SessionInfo:
    created, updated = int(fields[b"created_at"]) / 1e6, int(fields[b"updated_at"]) / 1e6
    date, tools = fields[b"date"].decode(), fields.get(b"tools", b"").decode()
    return SessionInfo(session_id, int(fields[b"next_turn"]), created, updated, max(0, ttl), date, tools)


def _encode(item: StoredItem) -> bytes:
    message = item.message
    assert message.rendered is not None, "only rendered messages are stored"
    fields: dict[str, Any] = {name: getattr(message, name) for name in _TEXT_FIELDS if getattr(message, name)}
    rendered = message.rendered
    fields |= {"turn": item.turn, "ids": rendered.ids, "generated": [rendered.first, rendered.last]}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


_TEXT_FIELDS = ("role", "content", "channel", "recipient", "name", "call_id", "content_type")


def _decode(raw: bytes) -> StoredItem:
    fields = json.loads(raw)
    text = {name: fields[name] for name in _TEXT_FIELDS if name in fields}
    rendered = Rendered(tuple(fields["ids"]), *fields["generated"])
    return StoredItem(ChatMessage(**{"content": "", **text}, rendered=rendered), fields["turn"])


def _write_token(score: float) -> str:
    return urlsafe_b64encode(f"{score:.0f}".encode()).decode()


def _read_token(token: str) -> str:
    """The bound of a page as Redis wants it: everything older than the last one shown."""
    if not token:
        return "+inf"
    try:
        return f"({int(urlsafe_b64decode(token.encode()))}"
    except (ValueError, binascii.Error) as error:
        raise FieldError("page_token", "is not one that was given out") from error

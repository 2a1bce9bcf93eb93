"""Sessions in Redis.

    shoal:session:{tenant:session}         hash, what is known of it
    shoal:session:{tenant:session}:items   list, what was said: see `items.py`
    shoal:session:{tenant:session}:lease   who writes the next turn
    shoal:sessions:{tenant}                sorted set: session names by the microsecond of their last turn

Tenant and session are percent-encoded, so no name can reach another's key. The first three keys share a hash tag and
are changed together by one script (`scripts.py`). The index is written after them, may lag or lose an entry, and is
mended by the next turn and by reading it; nothing but listing depends on it.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from shoal.router.errors import (
    FieldError,
    SessionExistsError,
    SessionGoneError,
    SessionsAwayError,
    TurnConflictError,
    TurnReservedError,
)
from shoal.router.sessions import scripts
from shoal.router.sessions.items import decode, encode
from shoal.router.sessions.store import NewSession, Session, SessionInfo, StoredItem, Turn
from shoal.router.store.away import RETRY_AFTER_MS, answering
from shoal.router.store.connect import connect
from shoal.router.store.keys import tagged
from shoal.router.store.script import Argument, Client, Script

_REPLICAS_MS = 1_000  # that replicas have to say that they have it

__all__ = ["RedisSessions", "connect", "index_key", "session_key"]


def session_key(tenant: str, session_id: str) -> str:
    """Key of a session's hash."""
    return tagged("session", tenant, session_id)


def index_key(tenant: str) -> str:
    """Key of a tenant's index."""
    return tagged("sessions", tenant)


class RedisSessions:
    """A `SessionStore` over one client."""

    def __init__(self, client: Client, replicas: int = 0, longest_seconds: int = 0) -> None:
        """What is stored counts as that once so many `replicas` have it. No session is kept idle for more than
        `longest_seconds`; 0: it is not known."""
        self._client, self._replicas, self._longest = client, replicas, longest_seconds

    async def load(self, tenant: str, session_id: str) -> Session | None:
        """See `SessionStore`."""
        key = session_key(tenant, session_id)
        async with answering("sessions"):
            found = await scripts.LOAD.run(self._client, [key, f"{key}:items"], [])
        return _session(session_id, *found)

    async def reserve(
        self,
        tenant: str,
        session_id: str,
        writer: str,
        lease_seconds: float,
        expected_turn: int | None = None,
        owner: str = "",
    ) -> Session | None:
        """See `SessionStore`."""
        expected = -1 if expected_turn is None else expected_turn
        arguments = (writer, int(lease_seconds * 1000), expected, owner)
        async with answering("sessions"):
            word, *rest = await scripts.RESERVE.run(self._client, _keys(tenant, session_id), arguments)
        if word == b"conflict":
            raise TurnConflictError(expected, int(rest[0]))
        if word == b"reserved":
            raise TurnReservedError(session_id, retry_after_ms=max(1, int(rest[0])))
        return _session(session_id, *rest)

    async def hold(
        self,
        tenant: str,
        session_id: str,
        writer: str,
        lease_seconds: float,
        owner: str = "",
        session: Session | None = None,
    ) -> bool:
        """See `SessionStore`."""
        turn, born = (session.info.next_turn, session.info.born) if session is not None else (0, "")
        arguments = (writer, int(lease_seconds * 1000), owner, turn, born)
        async with answering("sessions"):
            return bool(await scripts.HOLD.run(self._client, _keys(tenant, session_id), arguments))

    async def append(self, tenant: str, session_id: str, turn: Turn, born: str = "") -> None:
        """See `SessionStore`."""
        items = [encode(StoredItem(message, turn.number, turn.writer)) for message in turn.items]
        arguments: list[Argument] = [turn.number, turn.ttl_seconds, turn.date, turn.writer, turn.tools, born, *items]
        async with answering("sessions"):
            stored, *rest = await self._written(scripts.APPEND, _keys(tenant, session_id), arguments)
        if stored < 0:
            raise SessionGoneError(session_id, turn.number)
        if not stored:
            raise TurnConflictError(turn.number, int(rest[0]))
        await self._enter(tenant, session_id, rest[0], turn.ttl_seconds)

    async def create(self, tenant: str, session_id: str, new: NewSession) -> None:
        """See `SessionStore`."""
        arguments: list[Argument] = [new.next_turn, new.ttl_seconds, new.date, new.writer, new.tools]
        arguments += [encode(item) for item in new.items]
        async with answering("sessions"):
            created, *rest = await self._written(scripts.CREATE, _keys(tenant, session_id), arguments)
        if not created:
            raise SessionExistsError(f"there is a session {session_id!r} already")
        await self._enter(tenant, session_id, rest[0], new.ttl_seconds)

    async def page(self, tenant: str, limit: int, token: str) -> tuple[Sequence[SessionInfo], str]:
        """See `SessionStore`. Sessions that expired are left out and forgotten, so a page may be short."""
        below = _read_token(token)
        index = index_key(tenant)
        async with answering("sessions"):
            found: Any = await self._client.zrevrangebyscore(
                index, below, "-inf", start=0, num=limit + 1, withscores=True
            )
            shown = [(unquote(member.decode()), score) for member, score in found[:limit]]
            pipeline: Any = self._client.pipeline(transaction=False)
            for session_id, _ in shown:
                key = session_key(tenant, session_id)
                pipeline.hgetall(key).ttl(key)
            answers = await pipeline.execute() if shown else []
            infos = []
            for (session_id, score), fields, ttl in zip(shown, answers[::2], answers[1::2], strict=True):
                if fields:
                    infos.append(_info(session_id, fields, ttl))
                else:
                    arguments = (quote(session_id, safe=""), f"{score:.0f}")
                    await scripts.FORGET.run(self._client, [index], arguments)
        return infos, _write_token(shown[-1][1]) if len(found) > limit else ""

    async def delete(self, tenant: str, session_id: str) -> bool:
        """See `SessionStore`."""
        async with answering("sessions"):
            removed: int = await scripts.DELETE.run(self._client, _keys(tenant, session_id), [])
            await self._client.zrem(index_key(tenant), quote(session_id, safe=""))
        return removed > 0

    async def _written(self, script: Script, keys: list[str], arguments: list[Argument]) -> Any:
        """The script's answer, once what it wrote counts as stored. Raises SessionsAwayError while it does not: asked
        again by the same writer, the script answers the same."""
        if not self._replicas:
            return await script.run(self._client, keys, arguments)
        answer, replicated = await script.run_replicated(self._client, keys, arguments, self._replicas, _REPLICAS_MS)
        if answer[0] > 0 and not replicated:
            raise SessionsAwayError("Redis has no replica that keeps this", retry_after_ms=RETRY_AFTER_MS)
        return answer

    async def _enter(self, tenant: str, session_id: str, microseconds: bytes, ttl_seconds: int) -> None:
        """Into the tenant's index. The session itself is stored already; if this fails its next turn mends it."""
        try:
            async with answering("sessions"):
                arguments = (quote(session_id, safe=""), microseconds, ttl_seconds, self._longest)
                await scripts.INDEX.run(self._client, [index_key(tenant)], arguments)
        except SessionsAwayError:
            pass


def _keys(tenant: str, session_id: str) -> list[str]:
    key = session_key(tenant, session_id)
    return [key, f"{key}:items", f"{key}:lease"]


def _session(session_id: str, listed: list[bytes], raw_items: list[bytes], ttl: int) -> Session | None:
    if not listed:
        return None
    fields = dict(zip(listed[::2], listed[1::2], strict=True))
    return Session(_info(session_id, fields, ttl), tuple(decode(raw) for raw in raw_items))


def _info(session_id: str, fields: dict[bytes, bytes], ttl: int) -> SessionInfo:
    return SessionInfo(
        session_id=session_id,
        next_turn=int(fields[b"next_turn"]),
        created_at=int(fields[b"created_at"]) / 1e6,
        updated_at=int(fields[b"updated_at"]) / 1e6,
        expires_in=max(0, ttl),
        date=fields[b"date"].decode(),
        tools=fields.get(b"tools", b"").decode(),
        ttl_seconds=int(fields[b"ttl"]),
        writer=fields[b"writer"].decode(),
        bytes=int(fields[b"bytes"]),
        born=fields[b"created_at"].decode(),
    )


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

"""Which session a response is a turn of.

A response that is stored is a turn of a session. The first to continue from it takes the session's next turn; whoever
else continues from it, or from an older one, or under other instructions, gets a session of his own that begins with a
copy of what was said until then, token ids included, so that it renders identically. A response that is not stored but
continues from another runs in such a copy too, which is deleted when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from shoal.router.call import Call
from shoal.router.errors import SessionsAwayError
from shoal.router.harmony.message import ChatMessage
from shoal.router.harmony.render import Renderer
from shoal.router.http.errors import ParameterError
from shoal.router.http.responses.records import Record, Records
from shoal.router.sessions.store import SessionStore, Turn

_SHORT_LIVED_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response belongs."""

    session_id: str = ""
    """Empty: it is part of no conversation."""
    turn: int = 0
    """The turn that it will be."""
    instructed: bool = False
    """Whether its instructions are in the session already."""
    ttl_seconds: int = 0


class Conversations:
    """Finds or makes the sessions of responses. Without Redis there are none."""

    def __init__(self, records: Records | None, sessions: SessionStore | None, renderer: Renderer) -> None:
        self.records, self._sessions, self._renderer = records, sessions, renderer

    @property
    def kept(self) -> bool:
        """Whether responses can be stored at all."""
        return self.records is not None and self._sessions is not None

    @contextlib.asynccontextmanager
    async def place(
        self, call: Call, response_id: str, previous_id: str | None, instructions: str, *, store: bool
    ) -> AsyncGenerator[Place, None]:
        """Where the new response belongs, while it is generated. Raises ParameterError and SessionsAwayError."""
        if previous_id is None:
            records = self.required_records() if store else None
            ttl = records.ttl_seconds if records is not None else 0
            yield Place(session_id=response_id if store else "", ttl_seconds=ttl)
            return
        records = self.required_records()
        previous = await self._previous(call.tenant, previous_id)
        same = previous.instructions == instructions
        if store and same and await self._continues(call.tenant, previous, by=response_id):
            yield Place(previous.session_id, previous.turn + 1, True, records.ttl_seconds)
            return
        ttl = records.ttl_seconds if store else _SHORT_LIVED_SECONDS
        await self._branch(call, previous, response_id, ttl, instructions)
        try:
            yield Place(response_id, 1, True, ttl)
        finally:
            if not store:
                with contextlib.suppress(SessionsAwayError):  # it expires by itself
                    await self._required_sessions().delete(call.tenant, response_id)

    async def forget(self, tenant: str, record: Record) -> None:
        """Delete a response, and its session when that has a turn of no other response which is still there."""
        records, sessions = self.required_records(), self._required_sessions()
        await records.delete(tenant, record.response["id"])
        session = await sessions.load(tenant, record.session_id) if record.session_id else None
        if session is None:
            return
        for work_id in {item.writer for item in session.items}:
            if await records.exists(tenant, response_id_of(work_id)):
                return
        await sessions.delete(tenant, record.session_id)

    def required_records(self) -> Records:
        """The records, or SessionsAwayError."""
        if self.records is None or self._sessions is None:
            raise SessionsAwayError("this router has no Redis, so it stores no responses: say store = false")
        return self.records

    def _required_sessions(self) -> SessionStore:
        assert self._sessions is not None, "records were required before"
        return self._sessions

    async def _previous(self, tenant: str, response_id: str) -> Record:
        previous = await self.required_records().load(tenant, response_id)
        if previous is None:
            raise _absent(response_id)
        if previous.turn < 0:
            status = previous.response["status"]
            raise ParameterError(
                f"Previous response with id '{response_id}' is {status}: it cannot be continued.",
                "previous_response_id",
                "previous_response_not_complete",
            )
        return previous

    async def _continues(self, tenant: str, previous: Record, by: str) -> bool:
        """Whether the previous response is the last of its session and nobody else goes on from it."""
        session = await self._required_sessions().load(tenant, previous.session_id)
        if session is None or session.info.next_turn != previous.turn + 1:
            return False
        return await self.required_records().claim_next(tenant, previous.response["id"], by)

    async def _branch(self, call: Call, previous: Record, session_id: str, ttl: int, instructions: str) -> None:
        """A session of its own that begins with everything up to the previous response, under other instructions."""
        sessions = self._required_sessions()
        source = await sessions.load(call.tenant, previous.session_id)
        if source is None:
            raise _absent(previous.response["id"])
        messages = [item.message for item in source.items if item.turn <= previous.turn]
        if instructions != previous.instructions:
            if previous.instructions:
                messages = [m for m in messages if (m.role, m.content) != ("developer", previous.instructions)]
            if instructions:
                ours = ChatMessage("developer", instructions)
                messages.insert(0, replace(ours, rendered=self._renderer.message(ours)))
        first = Turn(0, tuple(messages), writer=f"{call.work_id}-branch", ttl_seconds=ttl, date=source.info.date)
        await sessions.append(call.tenant, session_id, first)


def response_id_of(work_id: str) -> str:
    """The name of the response that a request is."""
    return f"resp_{work_id}"


def _absent(response_id: str) -> ParameterError:
    return ParameterError(
        f"Previous response with id '{response_id}' not found.", "previous_response_id", "previous_response_not_found"
    )

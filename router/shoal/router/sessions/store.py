"""The seam between a router and where conversations are kept. `redis_store.py` is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.router.harmony.message import ChatMessage


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One message of a session; its ids are kept in `message.rendered`, so that it renders identically for ever."""

    message: ChatMessage
    turn: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of a session without reading it. Times are unix seconds."""

    session_id: str
    next_turn: int
    created_at: float
    updated_at: float
    expires_in: int
    """Seconds until it is gone if nothing is said."""
    date: str
    """Day the conversation began, YYYY-MM-DD, as its system message says."""
    tools: str = ""
    """Functions that the caller runs, as `Turn.tools` gave them."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session as of one moment."""

    info: SessionInfo
    items: tuple[StoredItem, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn adds to a session."""

    number: int
    items: tuple[ChatMessage, ...]
    writer: str
    """Name of the request: the same append sent twice counts once."""
    ttl_seconds: int
    date: str
    """Used when this turn makes the session."""
    tools: str = ""
    """Functions that the caller runs, in words of the inference's own; empty: those of earlier turns stay."""


class SessionStore(Protocol):
    """Conversations by tenant and name. Every method raises SessionsAwayError when the store does not answer.

    Another tenant's session cannot be told from one that does not exist.
    """

    async def load(self, tenant: str, session_id: str) -> Session | None:
        """The session, or None when it was never made, expired or was deleted. Does not prolong its life."""
        ...

    async def append(self, tenant: str, session_id: str, turn: Turn) -> None:
        """Store a turn, all of it or nothing, if it is the one that comes next; turn 0 makes the session.

        Raises TurnConflictError otherwise. When it returns, the turn is stored and the session's life prolonged.
        """
        ...

    async def page(self, tenant: str, limit: int, token: str) -> tuple[Sequence[SessionInfo], str]:
        """Up to `limit` sessions, newest first, and the token of the next page ("" at the end).

        Raises FieldError for a token that this method did not give.
        """
        ...

    async def delete(self, tenant: str, session_id: str) -> bool:
        """Remove everything; False when there was nothing."""
        ...

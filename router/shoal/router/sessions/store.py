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
    writer: str = ""
    """Our name for the request that brought it."""


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
    ttl_seconds: int = 0
    """How long it is kept after a turn that does not say."""
    writer: str = ""
    """Our name for the request that brought the latest turn."""
    bytes: int = 0
    """What its items take."""
    born: str = ""
    """Differs from that of any other session that has had the same name."""


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


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a session begins with."""

    ttl_seconds: int
    writer: str
    """Names who makes it: the same call made twice counts once."""
    date: str
    next_turn: int = 0
    items: tuple[StoredItem, ...] = ()
    """With ids, and turns before `next_turn`."""
    tools: str = ""


class SessionStore(Protocol):
    """Conversations by tenant and name. Every method raises SessionsAwayError when the store does not answer.

    Another tenant's session cannot be told from one that does not exist.
    """

    async def load(self, tenant: str, session_id: str) -> Session | None:
        """The session, or None when it was never made, expired or was deleted. Does not prolong its life."""
        ...

    async def reserve(
        self,
        tenant: str,
        session_id: str,
        writer: str,
        lease_seconds: float,
        expected_turn: int | None = None,
        owner: str = "",
    ) -> Session | None:
        """`load`, and nobody but `writer` may append for as long as it holds the lease: so of two who begin a turn the
        second is told at once. The session lives at least as long. A writer may have several owners, one after the
        other: the latest has the lease.

        Raises TurnReservedError, and TurnConflictError unless `expected_turn` comes next or the latest turn is the
        writer's own.
        """
        ...

    async def hold(
        self,
        tenant: str,
        session_id: str,
        writer: str,
        lease_seconds: float,
        owner: str = "",
        session: Session | None = None,
    ) -> bool:
        """Keep the lease for another `lease_seconds`; 0 gives it back. One that ran out is taken again while nobody
        else has it and the session is still as `reserve` gave it, `session`. False when it is the owner's no more."""
        ...

    async def create(self, tenant: str, session_id: str, new: NewSession) -> None:
        """Make a session. Raises SessionExistsError."""
        ...

    async def append(self, tenant: str, session_id: str, turn: Turn, born: str = "") -> None:
        """Store a turn, all of it or nothing, if it is the one that comes next; turn 0 makes the session. With `born`
        only into the session that was born so.

        Raises TurnConflictError otherwise, and when somebody else reserved the turn. When it returns, the turn is
        stored, the session's life prolonged and the writer's lease given back.
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

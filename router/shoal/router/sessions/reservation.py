"""The right to write a session's next turn, for as long as the turn takes.

    async with reserved(store, …) as reservation:
        reservation.session        what was said so far
        await reservation.append(turn)

Two requests that begin the same turn: the second is told at once, before it generates. A lease that is not renewed
(its router died) ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from shoal.router.errors import SessionsAwayError, TurnConflictError
from shoal.router.sessions.store import Session, SessionStore, Turn


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, seconds."""

    lease: float = 15.0
    """A turn whose router is silent for longer may be written by somebody else."""
    append: float = 45.0
    """How long a finished turn waits for Redis to come back before it is given up."""
    longest_pause: float = 1.0
    """Between two tries."""


class Reservation:
    """One turn's hold on its session. Made by `reserved`."""

    def __init__(self, store: SessionStore, names: tuple[str, str, str], patience: Patience) -> None:
        """`names`: tenant, session, writer."""
        self._store, self._patience = store, patience
        self._tenant, self._session_id, self._writer = names
        self._owner = secrets.token_hex(8)
        self.session: Session | None = None
        """As it was when the turn was reserved; None when this turn makes it."""
        self.over = False
        """Whether the turn was stored, which gives the lease back."""

    async def append(self, turn: Turn) -> None:
        """Store the turn, all of it or nothing. While Redis is away it is tried again and again, up to the patience:
        the same turn twice counts once, also when others wrote theirs before we heard of ours.

        Raises TurnConflictError, and SessionsAwayError when Redis stayed away.
        """
        born = self.session.info.born if self.session is not None else ""
        loop, pause = asyncio.get_running_loop(), 0.05
        give_up = loop.time() + self._patience.append
        while True:
            try:
                await self._store.append(self._tenant, self._session_id, turn, born)
            except TurnConflictError:
                if not await self._is_there(turn):
                    raise
                self.over = True
                return
            except SessionsAwayError:
                if loop.time() + pause > give_up:
                    raise
                await asyncio.sleep(pause)
                pause = min(self._patience.longest_pause, pause * 2)
            else:
                self.over = True
                return

    async def keep(self) -> None:
        """Renew the lease until it is lost or this is cancelled. A lost lease shows when the turn is appended."""
        held = True
        while held:
            await asyncio.sleep(self._patience.lease / 3)
            with contextlib.suppress(SessionsAwayError):
                held = await self._hold(self._patience.lease)

    async def give_back(self) -> None:
        """Let the next writer begin at once. Never raises: the lease ends by itself."""
        with contextlib.suppress(SessionsAwayError):
            await self._hold(0)

    async def begin(self, expected_turn: int | None) -> None:
        """Reserve the turn. Raises as `reserved` says."""
        names, lease = (self._tenant, self._session_id, self._writer), self._patience.lease
        self.session = await self._store.reserve(*names, lease, expected_turn, self._owner)

    async def _is_there(self, turn: Turn) -> bool:
        session = await self._store.load(self._tenant, self._session_id)
        return session is not None and any(
            (item.turn, item.writer) == (turn.number, turn.writer) for item in session.items
        )

    async def _hold(self, seconds: float) -> bool:
        names = self._tenant, self._session_id, self._writer
        return await self._store.hold(*names, seconds, self._owner, self.session)


@contextlib.asynccontextmanager
async def reserved(
    store: SessionStore,
    tenant: str,
    session_id: str,
    writer: str,
    *,
    expected_turn: int | None = None,
    patience: Patience | None = None,
) -> AsyncGenerator[Reservation, None]:
    """The next turn is ours while inside. Raises TurnReservedError, TurnConflictError and SessionsAwayError."""
    reservation = Reservation(store, (tenant, session_id, writer), patience or Patience())
    beginning = asyncio.create_task(reservation.begin(expected_turn), name=f"reserve {writer}")
    try:
        await asyncio.shield(beginning)
    except asyncio.CancelledError:  # who asked is gone, and Redis may have it already
        with contextlib.suppress(Exception):
            await beginning
            await asyncio.shield(reservation.give_back())
        raise
    keeper = asyncio.create_task(reservation.keep(), name=f"lease of {writer}")
    try:
        yield reservation
    finally:
        keeper.cancel()
        if not reservation.over:
            await asyncio.shield(reservation.give_back())

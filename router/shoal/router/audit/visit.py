"""A call on its way through the rims: recorded once, whoever knows of it first."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from shoal.router.access.caller import Caller
from shoal.router.access.table import CHANGING
from shoal.router.audit.trail import Trail
from shoal.router.errors import AuditError
from shoal.wire.status import status_of


@dataclass(slots=True)
class Visit:
    """One call. `trail` None: nothing is recorded."""

    trail: Trail | None
    method: str
    about: str = ""
    """What it is about, by name."""
    caller: Caller | None = None
    """None while, and if, it was not let in."""
    recorded: bool = False
    """Whether somebody recorded it, or does."""

    async def begin(self) -> None:
        """Before anything is changed. Raises AuditError."""
        if self.trail is not None and self.caller is not None and self.method in CHANGING:
            await self.trail.changing(self.caller, self.method, self.about)

    async def done(self) -> None:
        """It went well, and nobody was told so yet. Safe to repeat. Raises AuditError."""
        if not self.recorded and self.trail is not None:
            self.recorded = True
            await self.trail.called(self.caller, self.method, "OK", self.about)

    async def failed(self, error: BaseException) -> None:
        """Never raises: the error is what is told."""
        if self.recorded or self.trail is None or isinstance(error, AuditError):
            return
        self.recorded, status = True, status_of(error)
        outcome = f"{status.code.name} {status.reason}"
        with suppress(AuditError):
            await asyncio.shield(self.trail.called(self.caller, self.method, outcome, self.about))


_current: ContextVar[Visit | None] = ContextVar("visit", default=None)


@contextmanager
def visiting(visit: Visit) -> Generator[None, None, None]:
    """What runs inside, and the tasks it starts, are part of the visit."""
    token = _current.set(visit)
    try:
        yield
    finally:
        _current.reset(token)


def records_itself() -> None:
    """Whoever calls this records what the present visit asked for."""
    if (visit := _current.get()) is not None:
        visit.recorded = True

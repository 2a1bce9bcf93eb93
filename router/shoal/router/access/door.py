"""The door that every request of both APIs comes through: who is it, and may they do this?"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from shoal.router.access.caller import OPEN, Caller
from shoal.router.access.key import Key
from shoal.router.access.table import ALLOWED, FOR_EVERYBODY
from shoal.router.errors import DeniedError


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request brings to prove who it is from."""

    authorization: str = ""
    """The header of that name, as it was sent."""
    certificate: bytes = b""
    """The client's certificate, DER, which TLS has verified already; empty: none."""


class Door(Protocol):
    """Says who a request is from."""

    async def admit(self, shown: Shown, method: str) -> Caller:
        """The caller, who may call `method`, a name of the table.

        Raises CredentialError when it does not say who it is from, DeniedError when the role may not do this.
        """
        ...

    def key_of(self, caller: Caller) -> Key | None:
        """The record of the caller's key, None for who has none."""
        ...

    def require(self, caller: Caller) -> None:
        """Raises CredentialError when the caller's credential does not count any more."""
        ...

    def served(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """What runs inside ends with CredentialError when the caller's credential stops counting meanwhile."""
        ...


class OpenDoor:
    """Asks nobody for anything: for loopback, and for whom `insecure` is enough."""

    async def admit(self, shown: Shown, method: str) -> Caller:
        """See `Door`."""
        return allowed(OPEN, method)

    def key_of(self, caller: Caller) -> Key | None:
        """See `Door`."""
        return None

    def require(self, caller: Caller) -> None:
        """See `Door`."""

    def served(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """See `Door`. Nothing is revoked here."""
        return nullcontext()


def allowed(caller: Caller, method: str) -> Caller:
    """The caller, or DeniedError."""
    if method not in ALLOWED:
        raise DeniedError(f"{method} is open to nobody")
    if caller.role not in ALLOWED[method] and method not in FOR_EVERYBODY:
        raise DeniedError(f"the role {caller.role!r} may not call {method}")
    return caller

"""Who is asking. Established once per request at the rim, by a credential and never by what a caller says of itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from shoal.router.tenant import DEFAULT_TENANT

Role = Literal["admin", "operator", "user", "viewer", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Caller:
    """One authenticated party. Content belongs to tenants: no role sees another tenant's."""

    tenant: str
    role: Role
    key_id: str = ""
    """The credential's public name, which logs and the audit trail hold; empty: none was asked for."""
    subject: str = ""
    """Who it was given to, as far as is known."""
    expires: float = 0.0
    """When a credential that tells so itself stops counting, unix time; 0: ask the door."""


OPEN = Caller(DEFAULT_TENANT, "admin")
"""Everybody, where no credentials are asked for."""

_current: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Whose request this task serves. Only below the rims, which set it."""
    return _current.get()


@contextmanager
def serving(caller: Caller) -> Generator[None, None, None]:
    """What runs inside, and the tasks it starts, serve `caller`."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)

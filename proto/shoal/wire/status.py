"""Typed errors and the one translation of them to gRPC status.

    WireError                  code, stable reason, retryable or not, how long to wait
    ├── InvalidError           INVALID_ARGUMENT     the request itself is wrong
    ├── UnauthenticatedError   UNAUTHENTICATED      nobody knows who asks
    ├── DeniedError            PERMISSION_DENIED    who asks may not
    ├── AbsentError            NOT_FOUND
    ├── ConflictError          ABORTED              another writer was faster
    ├── ExistsError            ALREADY_EXISTS
    ├── OverloadedError        RESOURCE_EXHAUSTED   no room now (retryable)
    ├── UnavailableError       UNAVAILABLE          something we need is away (retryable)
    ├── LateError              DEADLINE_EXCEEDED
    └── InternalError          INTERNAL             our mistake

Trailing metadata beside the status: `shoal-reason` (a stable name), `shoal-retryable` ("true" or "false") and, when it
is known how long to wait, `retry-after-ms` and `grpc-retry-pushback-ms` (gRFC A6: clients with a retry policy obey it);
and all of it, with the fields that are wrong, as google.rpc details (`details.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

import grpc

from shoal.wire.details import DETAILS_KEY, write_details

REASON_KEY = "shoal-reason"
RETRYABLE_KEY = "shoal-retryable"
RETRY_AFTER_KEY = "retry-after-ms"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


class WireError(Exception):
    """An error that a peer is told about. The message is for people: what, where, what to do; never prompt text."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.violations: tuple[tuple[str, str], ...] = ()
        """Fields of the request, and what is wrong with each."""


class InvalidError(WireError):
    """The request itself is wrong; the message names the field."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "invalid"


class UnauthenticatedError(WireError):
    """No credential, or none that holds."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "unauthenticated"


class DeniedError(WireError):
    """Who asks is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "denied"


class AbsentError(WireError):
    """What was asked for does not exist, or is not the caller's."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "absent"


class ConflictError(WireError):
    """Another writer was faster."""

    code = grpc.StatusCode.ABORTED
    reason = "conflict"


class ExistsError(WireError):
    """The name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "exists"


class OverloadedError(WireError):
    """No room now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "overloaded"
    retryable = True


class UnavailableError(WireError):
    """Something that is needed is away."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "unavailable"
    retryable = True


class LateError(WireError):
    """The deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "deadline"


class InternalError(WireError):
    """A mistake of ours."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a peer sees of an error."""

    code: grpc.StatusCode
    message: str
    reason: str
    retryable: bool
    retry_after_ms: int | None
    violations: tuple[tuple[str, str], ...] = ()

    @property
    def number(self) -> int:
        """The google.rpc.Code number."""
        number: int = self.code.value[0]
        return number

    @property
    def trailing(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata."""
        pairs: list[tuple[str, str | bytes]] = [
            (REASON_KEY, self.reason),
            (RETRYABLE_KEY, "true" if self.retryable else "false"),
        ]
        if self.retryable and self.retry_after_ms is not None:
            pairs += [(RETRY_AFTER_KEY, str(self.retry_after_ms)), (PUSHBACK_KEY, str(self.retry_after_ms))]
        details = write_details(
            self.number,
            self.message,
            self.reason,
            violations=self.violations,
            retry_after_ms=self.retry_after_ms if self.retryable else None,
            exhausted=self.code is grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        return (*pairs, (DETAILS_KEY, details))


def status_of(error: BaseException) -> Status:
    """The status of any exception. What is not ours becomes INTERNAL without its text, which may hold secrets."""
    if isinstance(error, WireError):
        return Status(error.code, error.message, error.reason, error.retryable, error.retry_after_ms, error.violations)
    if isinstance(error, TimeoutError):
        return Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed", "deadline", False, None)
    if isinstance(error, asyncio.CancelledError):
        return Status(grpc.StatusCode.CANCELLED, "cancelled", "cancelled", False, None)
    return Status(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details", "internal", False, None)

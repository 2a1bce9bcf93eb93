"""A request that was accepted before, as its next owner or reader finds it."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.proto.v1.journal_pb2 import RequestRecord
from shoal.router.errors import JournalGapError, RequestOverError
from shoal.router.journal.lease import JournalView, Lease
from shoal.wire.status import AbsentError, ConflictError, InternalError, InvalidError, Status, WireError

_KINDS = {kind.code.name: kind for kind in (AbsentError, ConflictError, InternalError, InvalidError)}
FINAL = tuple(_KINDS.values())
"""Errors after which trying again would only fail again: the request is over."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """What is known of the request."""

    record: RequestRecord
    view: JournalView
    lease: Lease | None
    """The right to go on with it; None when it is over."""

    @property
    def ended(self) -> WireError:
        """What follows the last token of a request that is over and whose tokens have no end."""
        if self.view.state == "failed":
            return error_of(self.view.outcome)
        if not self.view.tokens:
            return RequestOverError(f"request {self.record.request_id!r} is over, and what it said is not kept")
        return JournalGapError(self.record.work_id, len(self.view.tokens))


def outcome_of(status: Status) -> str:
    """How a request failed, as the journal keeps it."""
    return f"{status.code.name}: {status.message}"


def error_of(outcome: str) -> WireError:
    """The failure that `outcome_of` kept.

    >>> error_of("INVALID_ARGUMENT: no token may follow: ever")
    InvalidError('no token may follow: ever')
    """
    code, _, message = outcome.partition(": ")
    return _KINDS.get(code, InternalError)(message)

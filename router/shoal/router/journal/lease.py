"""Who may write to a request's journal, and what a journal holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.proto.v1.journal_pb2 import JournalTokens, RequestRecord

State = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to go on with a request: `attempt` fences everybody who had it before."""

    tenant: str
    work_id: str
    attempt: int
    owner: str
    """Which router."""


@dataclass(frozen=True, slots=True)
class JournalView:
    """A request's journal as of one moment, all of it or from a place on."""

    record: RequestRecord | None
    """As it was accepted; None when only what is new was asked for."""
    attempt: int
    owner: str
    state: State
    outcome: str
    """How it failed, in the writer's words; empty unless it did."""
    orphaned: bool
    """It runs, and its owner was not heard of for longer than its lease."""
    tokens: tuple[JournalTokens, ...]
    """In the order of their writing, each lane's without gap or overlap; a lane is a round of a choice."""
    notes: Mapping[str, bytes]
    """Facts that were journaled before they were used."""
    next: int
    """The place to read on from."""

    def lane(self, choice: int, round_: int = 0) -> tuple[JournalTokens, ...]:
        """The entries of one round of one choice."""
        return tuple(entry for entry in self.tokens if (entry.choice, entry.round) == (choice, round_))


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """How much is kept of a request, and for how long. Times are seconds."""

    lease_seconds: float = 15.0
    """A request whose owner is silent for longer may be taken over."""
    keep_seconds: float = 900.0
    """After a request ended, or its deadline passed, it can be read for this long."""
    most_bytes: int = 8 * 2**20
    """Entries and notes of one request; with more it goes on and is journaled no further."""

"""Which worker gets a request. Pure: loads in, a choice out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEP_TOKENS = 512
"""Prompt tokens that about one step of a worker computes."""

CROWDED = 0.95
"""Share of KV blocks in use from which a worker is only chosen when all are that full."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is known of one ready worker."""

    address: str
    reported: int = 0
    """Sequences running and waiting there, of all routers, in its last report."""
    own_at_report: int = 0
    """Those of this router when that report came."""
    own: int = 0
    """Those of this router now."""
    kv_used: float = 0.0
    """Share of its KV blocks in use, 0 to 1."""
    backlog_reported: int = 0
    """Tokens to compute there before all decode, of all routers, in its last report."""
    backlog_own_at_report: int = 0
    backlog_own: int = 0

    @property
    def sequences(self) -> int:
        """Best estimate of the sequences there now: others' as reported, our own as we know them."""
        return max(0, self.reported - self.own_at_report) + self.own

    @property
    def steps_behind(self) -> int:
        """Steps full of prompts that somebody new would wait for."""
        others = max(0, self.backlog_reported - self.backlog_own_at_report)
        return (others + self.backlog_own) // STEP_TOKENS


def choose(loads: Sequence[Load], turn: int = 0) -> Load | None:
    """Where the next token comes soonest: the least behind with prompts, then the least loaded; among equals they take
    turns as `turn` counts up. None when there is none.

    So what a dead worker leaves is computed again by all who are left, however few sequences one of them has.

    >>> a, b, c = Load("a", own=2), Load("b", reported=1), Load("c", reported=3, own_at_report=2)
    >>> [choose([a, b, c], turn).address for turn in (0, 1, 2, 3)]
    ['b', 'c', 'b', 'c']
    >>> choose([Load("a", kv_used=0.99), Load("b", own=7)]).address
    'b'
    >>> choose([Load("a", backlog_own=4000), Load("b", own=7)]).address
    'b'
    >>> choose([]) is None
    True
    """
    if not loads:
        return None
    ranks = [(load.kv_used >= CROWDED, load.steps_behind, load.sequences) for load in loads]
    best = [load for load, rank in zip(loads, ranks, strict=True) if rank == min(ranks)]
    return best[turn % len(best)]

"""How many groups there should be, from what is measured: a pure policy with hysteresis.

    decision = decide(Policy(least=1, most=4), memory, [Measured(...), ...], now)
    if decision.groups != groups: scale(groups=decision.groups)

Up when any target is missed for a while, by what the worst measure asks for; down only when one group fewer would still
meet every target with room to spare, for longer, and never again soon after a change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Targets:
    """What a group should keep. Times are seconds, shares 0 to 1."""

    queue_seconds: float = 0.5
    """How long requests wait before a worker runs them."""
    kv_used: float = 0.8
    """Share of KV blocks in use."""
    first_token_seconds: float = 2.0
    """Time to first token, 90th percentile."""


@dataclass(frozen=True, slots=True)
class AutoscalePolicy:
    """Bounds and patience. A wrong value raises ValueError naming its field."""

    least: int = 1
    most: int = 4
    targets: Targets = Targets()
    up_after: float = 10.0
    """Seconds that a target must be missed."""
    down_after: float = 120.0
    """Seconds that one group fewer must have been enough."""
    rest: float = 30.0
    """Seconds after a change in which nothing is changed: a new group takes as long to be felt."""
    slack: float = 0.7
    """Share of every target that one group fewer must stay below."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least and most must be 1 <= least <= most, not {self.least} and {self.most}")
        if not 0 < self.slack < 1:
            raise ValueError(f"slack must be between 0 and 1, not {self.slack}")
        for name in ("up_after", "down_after", "rest"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the cluster felt since the last look, over all groups."""

    queue_seconds: float
    kv_used: float
    first_token_seconds: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers between two looks. Times are seconds of the caller's clock."""

    short_since: float | None = None
    roomy_since: float | None = None
    changed_at: float = -math.inf


def pressure(targets: Targets, measured: Measured) -> float:
    """How much of what may be is there, by the worst measure; above 1 a target is missed.

    >>> pressure(Targets(), Measured(queue_seconds=0.25, kv_used=0.8, first_token_seconds=1.0))
    1.0
    """
    return max(
        measured.queue_seconds / targets.queue_seconds,
        measured.kv_used / targets.kv_used,
        measured.first_token_seconds / targets.first_token_seconds,
    )


def decide(policy: AutoscalePolicy, memory: Memory, groups: int, measured: Measured, now: float) -> tuple[int, Memory]:
    """The number of groups from now on, and what to remember.

    A group more or less shares the load: pressure is taken to go with its inverse. Up by at most a doubling.
    """
    if not policy.least <= groups <= policy.most:
        return min(max(groups, policy.least), policy.most), Memory(changed_at=now)
    now_at = pressure(policy.targets, measured)
    short_since = (now if memory.short_since is None else memory.short_since) if now_at > 1 else None
    fewer = now_at * groups / (groups - 1) if groups > policy.least else math.inf
    roomy_since = (now if memory.roomy_since is None else memory.roomy_since) if fewer <= policy.slack else None
    remembered = Memory(short_since, roomy_since, memory.changed_at)
    if now - memory.changed_at < policy.rest:
        return groups, remembered
    if short_since is not None and now - short_since >= policy.up_after and groups < policy.most:
        wanted = min(math.ceil(groups * now_at), 2 * groups, policy.most)
        return max(wanted, groups + 1), Memory(changed_at=now)
    if roomy_since is not None and now - roomy_since >= policy.down_after:
        return groups - 1, Memory(changed_at=now)
    return groups, remembered

"""How many groups there should be, from what is measured: a pure policy with hysteresis.

    decision = decide(AutoscalePolicy(least=1, most=4), memory, groups, Measured(...), now)
    if decision.groups != groups: scale(groups=decision.groups)

Up when any target is missed for a while, by what the worst measure asks for; down only when one group fewer would still
meet every target with room to spare, for longer, and never again soon after a change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.wire.settings import requirer


@dataclass(frozen=True, slots=True)
class AutoscalePolicy:
    """The [autoscale] section: bounds, targets and patience. A wrong value raises SettingError naming its key.

    Times are seconds, shares 0 to 1.
    """

    enabled: bool = False
    """Add and remove groups by what is measured; `shoal scale --groups` then says where it begins."""
    least: int = 1
    """Fewest groups."""
    most: int = 4
    """Most groups."""
    queue_seconds: float = 0.5
    """Target: how long requests wait, in a router for room or in a worker for their turn."""
    kv_used: float = 0.8
    """Target: share of KV blocks in use."""
    first_token_seconds: float = 2.0
    """Target: time to first token, 90th percentile. Well above that of an idle cluster, or groups never go."""
    up_after: float = 10.0
    """How long a target must be missed."""
    down_after: float = 120.0
    """How long one group fewer must have been enough."""
    rest: float = 30.0
    """How long nothing is changed after a change: a new group takes as long to be felt."""
    slack: float = 0.7
    """Share of every target that one group fewer must stay below."""

    def __post_init__(self) -> None:
        require = requirer("autoscale", self)
        require("least", self.least >= 1, "at least 1")
        require("most", self.most >= self.least, "at least autoscale.least")
        for key in ("queue_seconds", "first_token_seconds"):
            require(key, getattr(self, key) > 0, "above 0")
        require("kv_used", 0 < self.kv_used <= 1, "above 0 and at most 1")
        require("slack", 0 < self.slack < 1, "between 0 and 1")
        for key in ("up_after", "down_after", "rest"):
            require(key, getattr(self, key) >= 0, "0 or more")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the cluster felt of late, over all groups."""

    queue_seconds: float = 0.0
    kv_used: float = 0.0
    first_token_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers between two looks. Times are seconds of the caller's clock."""

    short_since: float | None = None
    roomy_since: float | None = None
    changed_at: float = -math.inf

    def interrupted(self) -> Memory:
        """For a while nothing could be measured: patience begins anew, the rest goes on."""
        return Memory(changed_at=self.changed_at)


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of groups from now on, why it is another (empty: it is not), and what to remember."""

    groups: int
    why: str
    memory: Memory


def shares(policy: AutoscalePolicy, measured: Measured) -> dict[str, float]:
    """How much of each target is there; above 1 it is missed.

    >>> shares(AutoscalePolicy(), Measured(queue_seconds=0.25, kv_used=0.8, first_token_seconds=1.0))
    {'queue': 0.5, 'KV': 1.0, 'first token': 0.5}
    """
    return {
        "queue": measured.queue_seconds / policy.queue_seconds,
        "KV": measured.kv_used / policy.kv_used,
        "first token": measured.first_token_seconds / policy.first_token_seconds,
    }


def with_one_fewer(policy: AutoscalePolicy, groups: int, measured: Measured) -> float:
    """The worst share of a target if one group went: the others take its load. Less load makes a first token come no
    sooner than it comes on an idle worker, so that one is taken as it is."""
    if groups <= policy.least:
        return math.inf
    now, more = shares(policy, measured), groups / (groups - 1)
    return max(now["queue"] * more, now["KV"] * more, now["first token"])


def decide(policy: AutoscalePolicy, memory: Memory, groups: int, measured: Measured, now: float) -> Decision:
    """What is right now. Up by at most a doubling, down by one."""
    if not policy.least <= groups <= policy.most:
        bounded = min(max(groups, policy.least), policy.most)
        return Decision(bounded, f"{policy.least} to {policy.most} groups are allowed", Memory(changed_at=now))
    worst, share = max(shares(policy, measured).items(), key=lambda item: item[1])
    roomy = with_one_fewer(policy, groups, measured) <= policy.slack
    remembered = Memory(
        _since(memory.short_since, share > 1, now), _since(memory.roomy_since, roomy, now), memory.changed_at
    )
    if now - memory.changed_at < policy.rest:
        return Decision(groups, "", remembered)
    if _lasted(remembered.short_since, policy.up_after, now) and groups < policy.most:
        wanted = max(groups + 1, min(math.ceil(groups * share), 2 * groups, policy.most))
        why = f"{worst} at {share:.1f} of its target, above it for {policy.up_after:g} s"
        return Decision(wanted, why, Memory(changed_at=now))
    if _lasted(remembered.roomy_since, policy.down_after, now):
        why = f"one group fewer was enough for {policy.down_after:g} s"
        return Decision(groups - 1, why, Memory(changed_at=now))
    return Decision(groups, "", remembered)


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def _lasted(since: float | None, patience: float, now: float) -> bool:
    return since is not None and now - since >= patience

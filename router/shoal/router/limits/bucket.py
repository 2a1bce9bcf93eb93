"""A token bucket. Pure; the script in Redis does the same arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Holds up to a minute's worth and fills steadily. Times are milliseconds.

    >>> bucket = Bucket(per_minute=60, level=60.0, at=0)
    >>> bucket.wait(60, now=0), bucket.take(60, now=0), bucket.wait(2, now=500)
    (0, None, 1500)
    """

    per_minute: int
    level: float
    at: int

    @classmethod
    def full(cls, per_minute: int, now: int) -> Bucket:
        """One that nobody took from."""
        return cls(per_minute, float(per_minute), now)

    def wait(self, amount: float, now: int) -> int:
        """Milliseconds until `amount` can be taken; 0: now. More than it ever holds can be taken when it is full."""
        missing = min(amount, self.per_minute) - self._level(now)
        return 0 if missing <= 1e-6 else max(1, math.ceil(missing * 60_000 / self.per_minute))

    def take(self, amount: float, now: int) -> None:
        """Take it, whether it is there or not; a negative amount is given back."""
        self.level = min(float(self.per_minute), self._level(now) - amount)
        self.at = max(self.at, now)

    def _level(self, now: int) -> float:
        return min(float(self.per_minute), self.level + max(0, now - self.at) * self.per_minute / 60_000)

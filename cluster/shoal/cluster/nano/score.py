"""What share was right, and between which bounds the true share lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True)
class Score:
    """`right` of `asked`."""

    right: int
    asked: int

    def __post_init__(self) -> None:
        assert 0 <= self.right <= self.asked, (self.right, self.asked)
        assert self.asked > 0, "a share of nothing"

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def bounds(self) -> tuple[float, float]:
        """Wilson's 95 % interval (E. B. Wilson, 1927): honest at 0, at 1 and for few questions.

        >>> [round(bound, 3) for bound in Score(19, 20).bounds]
        [0.764, 0.991]
        """
        n, p = self.asked, self.share
        middle = p + _Z**2 / (2 * n)
        spread = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.asked + other.asked)

"""When what failed is tried again: twice as long after each further failure, never longer than five minutes. Pure."""

from __future__ import annotations

LONGEST = 300.0
"""Seconds between a failure and the next try, however often it failed."""


class Retries:
    """Counts the failures of each name since it was last well.

    >>> retries = Retries()
    >>> [retries.failed("g0", 10.0) for _ in range(7)]
    [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    >>> retries.well("g0")
    >>> retries.failed("g0", 10.0)
    10.0
    """

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}

    def failed(self, name: str, first: float) -> float:
        """It failed again: seconds until it is tried, `first` after the first failure."""
        failures = self._failures.get(name, 0)
        self._failures[name] = failures + 1
        return min(LONGEST, first * 2.0 ** min(failures, 32))

    def well(self, name: str) -> None:
        """What was before does not count any more."""
        self._failures.pop(name, None)

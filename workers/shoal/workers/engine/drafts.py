"""Guessing the next tokens from the sequence itself: prompt lookup (n-gram) speculation.

A guess costs little and changes nothing: the step that verifies it samples every position with that position's own
random number and keeps the guesses only while they equal what was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
"""Lengths of the endings that are looked up, longest first."""


class NgramIndex:
    """Where each ending of up to LONGEST tokens was last seen in a growing sequence of tokens."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}  # n-gram -> index after its last occurrence but the very end
        self._indexed = 0

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the last earlier occurrence of the sequence's ending.

        >>> NgramIndex().guess([7, 1, 2, 3, 9, 9, 1, 2], 2)
        [3, 9]
        """
        self._extend(tokens)
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            start = self._last.get(tuple(tokens[-length:]))
            if start is not None:
                return list(tokens[start : start + count])
        return []

    def _extend(self, tokens: Sequence[int]) -> None:
        """Index every n-gram that ends before the last token; the ending itself is looked up, not found."""
        for end in range(max(1, self._indexed), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._last[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)

"""Ends a text before the first of some given texts, although it arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text through, holding back what may yet turn out to be the beginning of a stop text.

    The stop that is complete first counts, and among those the one that began first; so the result does not depend on
    how the text was cut into pieces.

    >>> stop = StopText(["END"])
    >>> [stop.push(piece) for piece in ("ab", "cE", "N", "ope EN", "D zz")], stop.reached
    (['ab', 'c', '', 'ENope ', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop text would end everything"
        self._stops = tuple(stops)
        self._held = ""
        self.reached = False
        """Whether a stop text was seen; nothing passes any more."""

    def push(self, text: str) -> str:
        """The text that is certain now."""
        if self.reached:
            return ""
        text = self._held + text
        self._held = ""
        found = [(begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            self.reached = True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - keep
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return "" if self.reached else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

"""Who waits for something, and for how long: what an autoscaler wants to know before anybody was served."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator

_MOST = 4096  # ended waits that are remembered


class WaitingLine:
    """Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._numbers = itertools.count()
        self._since: dict[int, float] = {}  # in the order of arrival
        self._over: deque[tuple[float, float]] = deque(maxlen=_MOST)  # when a wait ended, and how long it was

    @property
    def oldest(self) -> float:
        """Seconds that the first in line has waited, 0 when nobody waits."""
        return self._clock() - next(iter(self._since.values())) if self._since else 0.0

    def felt(self, seconds: float) -> tuple[int, float]:
        """How many got what they waited for in the last `seconds` or still wait, and the 90th percentile of how long;
        those that still wait count with what they have waited so far."""
        now = self._clock()
        waits = [wait for when, wait in self._over if now - when <= seconds]
        waits += [now - since for since in self._since.values()]
        return len(waits), sorted(waits)[math.ceil(0.9 * len(waits)) - 1] if waits else 0.0

    @contextlib.contextmanager
    def joined(self) -> Iterator[Callable[[], None]]:
        """In line until the function that it gives is called: it got what it waited for; or until the block ends."""
        number = next(self._numbers)
        self._since[number] = self._clock()

        def served() -> None:
            if (since := self._since.pop(number, None)) is not None:
                now = self._clock()
                self._over.append((now, now - since))

        try:
            yield served
        finally:
            self._since.pop(number, None)

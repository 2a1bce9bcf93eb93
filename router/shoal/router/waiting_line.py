"""Who waits for room, and for how long: what an autoscaler wants to know before anybody was served."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator


class WaitingLine:
    """Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._numbers = itertools.count()
        self._since: dict[int, float] = {}  # in the order of arrival

    @property
    def oldest(self) -> float:
        """Seconds that the first in line has waited, 0 when nobody waits."""
        return self._clock() - next(iter(self._since.values())) if self._since else 0.0

    @contextlib.contextmanager
    def joined(self) -> Iterator[Callable[[], None]]:
        """In line until the function that it gives is called, or the block ends."""
        number = next(self._numbers)
        self._since[number] = self._clock()

        def leave() -> None:
            self._since.pop(number, None)

        try:
            yield leave
        finally:
            leave()

"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds spent per named phase since the start. Host time: on a GPU it shows launches, not kernels."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stopped = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if not self._stopped:
                self.seconds[name] += time.perf_counter() - start

    @contextmanager
    def shared(self) -> Iterator[Stopwatch]:
        """A stopwatch for several threads at once: the time of the block is dealt out as their phases were long."""
        busy, start = Stopwatch(), time.perf_counter()
        try:
            yield busy
        finally:
            spent, total = time.perf_counter() - start, sum(busy.seconds.values())
            for name, seconds in busy.seconds.items() if not self._stopped else ():
                self.seconds[name] += spent * seconds / total if total else 0.0

    def stop(self) -> None:
        """Add nothing from now on."""
        self._stopped = True

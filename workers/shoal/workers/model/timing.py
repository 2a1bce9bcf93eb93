"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class Stopwatch:
    """Seconds spent per named phase since the start. Host time: on a GPU it shows launches, not kernels."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stopped = False

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Add the time of the block to `name`."""
        return _Phase(self, name)

    def add(self, name: str, seconds: float) -> None:
        """Of `name`."""
        if not self._stopped:
            self.seconds[name] += seconds

    @contextmanager
    def shared(self) -> Iterator[Stopwatch]:
        """A stopwatch for several threads at once: the time of the block is dealt out as their phases were long."""
        busy, start = Stopwatch(), time.perf_counter()
        try:
            yield busy
        finally:
            spent, total = time.perf_counter() - start, sum(busy.seconds.values())
            for name, seconds in busy.seconds.items():
                self.add(name, spent * seconds / total if total else 0.0)

    def stop(self) -> None:
        """Add nothing from now on."""
        self._stopped = True


class _Phase(AbstractContextManager[None]):
    """A class, because entering a generator takes twice as long and a step enters several hundred."""

    __slots__ = ("_name", "_start", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._watch.add(self._name, time.perf_counter() - self._start)

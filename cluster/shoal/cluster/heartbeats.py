"""Who has been silent for too long: a pure judge. It forgives everybody when it was itself the one that slept."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Heartbeats:
    """Last words by name. All times are seconds of one clock; `now` never goes back.

    >>> judge = Heartbeats(timeout=2.0)
    >>> judge.heard("a", 0.0); judge.heard("b", 0.0)
    >>> [judge.silent(t) for t in (0.5, 1.0, 1.5)]
    [[], [], []]
    >>> judge.heard("a", 1.6)
    >>> judge.silent(2.0), judge.silent(2.1)
    ([], ['b'])
    >>> judge.silent(9.0)  # nobody looked for so long: who knows who spoke meanwhile
    []
    """

    timeout: float
    _last: dict[str, float] = field(default_factory=dict)
    _looked: float | None = None

    def heard(self, name: str, now: float) -> None:
        """`name` spoke."""
        self._last[name] = now

    def forget(self, name: str) -> None:
        """`name` is not expected to speak any more."""
        self._last.pop(name, None)

    def silent(self, now: float) -> list[str]:
        """Those whose last word is older than the timeout; each is named once. Ask several times per timeout."""
        slept = now - self._looked if self._looked is not None else 0.0
        self._looked = now
        if slept > self.timeout / 2:
            self._last = dict.fromkeys(self._last, now)
        silent = [name for name, last in self._last.items() if now - last > self.timeout]
        for name in silent:
            del self._last[name]
        return silent

"""Keys that are refused again and again are held off, longer each time. Pure: a state machine over given times."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_WINDOW = 60.0  # seconds in which refusals count
_MOST = 10_000  # names remembered


@dataclass(slots=True)
class _Record:
    strikes: float
    at: float
    until: float = 0.0


class Backoff:
    """Counts refusals by name; they fade over a minute."""

    def __init__(self, tolerance: int, longest: float) -> None:
        """More than `tolerance` refusals hold a name off for 1 s, 2 s, 4 s, … up to `longest` seconds."""
        self._tolerance, self._longest = tolerance, longest
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def strike(self, name: str, now: float) -> None:
        """It was refused."""
        record = self._records.setdefault(name, _Record(0.0, now))
        self._records.move_to_end(name)
        fading = max(0.0, 1.0 - (now - max(record.at, record.until)) / _WINDOW) if now > record.until else 1.0
        record.strikes, record.at = record.strikes * fading + 1.0, now
        over = record.strikes - self._tolerance
        if over > 0:
            record.until = now + min(self._longest, 2.0 ** (min(over, 30.0) - 1.0))
        if len(self._records) > _MOST:
            self._records.popitem(last=False)

    def held(self, name: str, now: float) -> float:
        """Seconds for which it is still held off; 0: it is not."""
        record = self._records.get(name)
        return 0.0 if record is None else max(0.0, record.until - now)

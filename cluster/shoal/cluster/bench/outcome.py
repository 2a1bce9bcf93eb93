"""What happened to one request."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """Times are seconds since the start of the run. `code` is a gRPC status name, OK for an answer."""

    conversation: int
    turn: int
    due: float
    """When it should have been sent: an open loop that falls behind does not make its requests look faster."""
    sent: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """When messages came, and how many tokens each brought."""
    ended: float = 0.0
    input_tokens: int = 0
    cached_tokens: int = 0
    code: str = "OK"
    message: str = ""

    @property
    def output_tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def ttft(self) -> float | None:
        """To the first token."""
        return self.arrivals[0][0] - self.due if self.arrivals else None

    @property
    def gaps(self) -> list[float]:
        """Between successive tokens, as they came: those of one message came together."""
        times = list(itertools.chain.from_iterable([time] * count for time, count in self.arrivals))
        return [after - before for before, after in itertools.pairwise(times)]

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals[-1][0] - self.arrivals[0][0]) / (self.output_tokens - 1)

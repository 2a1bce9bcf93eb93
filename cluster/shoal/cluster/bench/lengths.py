"""How long prompts and answers are: a number, or a distribution."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Draws whole numbers of at least 1. `kind` is fixed, uniform (from `first` to `second`, both included) or normal
    (mean `first`, deviation `second`)."""

    kind: str
    first: float
    second: float = 0.0

    def draw(self, chance: random.Random) -> int:
        """The next length."""
        match self.kind:
            case "uniform":
                return chance.randint(int(self.first), int(self.second))
            case "normal":
                return max(1, round(chance.gauss(self.first, self.second)))
        return int(self.first)

    @property
    def longest(self) -> int:
        """No draw is longer; of a normal distribution, hardly any."""
        if self.kind == "normal":
            return round(self.first + 4 * self.second)
        return int(max(self.first, self.second))


def parse_lengths(text: str) -> Lengths:
    """`256`, `uniform:64:512` or `normal:256:64`. Raises ValueError for anything else.

    >>> parse_lengths("uniform:64:512")
    Lengths(kind='uniform', first=64.0, second=512.0)
    """
    wrong = ValueError(f"{text!r} is no length such as 256, uniform:64:512 or normal:256:64")
    kind, *numbers = text.split(":") if ":" in text else ("fixed", text)
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise wrong from None
    if kind == "fixed" and len(values) == 1 and values[0] >= 1 and values[0].is_integer():
        return Lengths(kind, values[0])
    if kind == "uniform" and len(values) == 2 and 1 <= values[0] <= values[1] and all(v.is_integer() for v in values):
        return Lengths(kind, *values)
    if kind == "normal" and len(values) == 2 and values[0] >= 1 and 0 <= values[1] < float("inf"):
        return Lengths(kind, *values)
    raise wrong

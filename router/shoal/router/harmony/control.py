"""The control tokens of Harmony, by their ids in the checkpoint's own vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.router.errors import StartError


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of the tokens that give a conversation its shape (o200k_harmony: 199998 to 200012)."""

    start: int
    end: int
    message: int
    channel: int
    constrain: int
    return_: int
    call: int
    endoftext: int

    @classmethod
    def of(cls, control: Mapping[str, int]) -> ControlTokens:
        """From a vocabulary's control tokens by name. Raises StartError naming those that are missing."""
        names = {name.rstrip("_"): name for name in cls.__slots__}
        if missing := [f"<|{word}|>" for word in names if f"<|{word}|>" not in control]:
            raise StartError(f"tokenizer.json lacks the Harmony control tokens {', '.join(missing)}")
        return cls(**{name: control[f"<|{word}|>"] for word, name in names.items()})

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end the model's turn: its answer is complete, or it calls a tool."""
        return (self.return_, self.call)

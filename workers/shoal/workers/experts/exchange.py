"""The two all-to-alls around a layer's experts, and the small agreement before each step.

`dispatch` sends every token once to each rank that serves at least one of its experts and returns a handle; `combine`
takes the handle and brings back one row per (token, expert), unsummed. No state is hidden between the two.

Names say where a tensor lives: `_dp` are tokens owned by this rank, `_ep` tokens for this rank's experts, `_global`
covers all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Handle:
    """What one `dispatch` delivered, and what its `combine` needs."""

    layer: int
    x_ep: Tensor  # [R, H] tokens for this rank's experts, by source rank, then in the source's order
    ids_ep: Tensor  # [R, k] int32 their experts, -1 where another rank serves the pair
    tokens_dp: int  # tokens this rank sent from
    tokens_of_peer: tuple[int, ...]  # per rank: tokens sent to it
    tokens_from_peer: tuple[int, ...]  # per rank: tokens received from it
    rows_of_peer: tuple[int, ...]  # per rank: pairs that this rank serves for it
    rows_from_peer: tuple[int, ...]  # per rank: pairs that it serves for this rank
    back: Tensor | None  # [T * k] int64 where in what comes back each pair of this rank is; None: as they were sent


class Wish(IntFlag):
    """What a rank may ask of all before a step; one rank that asks is enough."""

    NONE = 0
    PAUSE = 1
    """Rest instead of this step: the epoch changes, or a rank leaves."""
    CANARY = 2
    """Repeat the self-test after this step."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the ranks agreed before a step."""

    max_tokens: int  # most tokens on any rank: the bound for the step's gathers
    total_tokens: int  # zero: nobody has work, all may sleep
    wishes: Wish  # of any rank


@dataclass(slots=True)
class Traffic:
    """What an exchange has carried and waited for since it was made."""

    sent_bytes: int = 0
    """To other ranks."""
    waited_seconds: float = 0.0
    """For other ranks to begin a step: the price of stragglers."""


class Exchange(Protocol):
    """How tokens reach the ranks of a group. One instance serves one epoch.

    Every method is a collective: all ranks call it in the same order. Every method may raise ExchangeError within
    the deadline; the exchange is then finished and a new epoch must be made.
    """

    traffic: Traffic

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def agree(self, step: int, tokens_dp: int, wishes: Wish) -> Agreement:
        """Before a step. Modifies nothing but the bound that the step's dispatches use."""
        ...

    def compare(self, words: Sequence[int]) -> list[list[int]]:
        """Show all ranks a few numbers: those of every rank, by rank."""
        ...

    def dispatch(self, layer: int, x_dp: Tensor, ids_dp: Tensor) -> Handle:
        """x_dp [T, H], ids_dp [T, k] int32 -> handle. The inputs are not modified and may be reused at once."""
        ...

    def combine(self, rows_ep: Tensor, handle: Handle) -> Tensor:
        """rows_ep [P, H], one per served pair in the order of `handle.ids_ep` -> [T, k, H] in top-k order."""
        ...

    def close(self) -> None:
        """Give the connections back. Not a collective; always safe."""
        ...


class LocalExchange:
    """A group of one rank: nothing travels. The same rows in the same order as the real exchange."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.traffic = Traffic()

    def agree(self, step: int, tokens_dp: int, wishes: Wish) -> Agreement:
        return Agreement(tokens_dp, tokens_dp, wishes)

    def compare(self, words: Sequence[int]) -> list[list[int]]:
        return [list(words)]

    def dispatch(self, layer: int, x_dp: Tensor, ids_dp: Tensor) -> Handle:
        pairs = ids_dp.numel()
        return Handle(layer, x_dp, ids_dp, x_dp.shape[0], (), (), (pairs,), (pairs,), None)

    def combine(self, rows_ep: Tensor, handle: Handle) -> Tensor:
        return rows_ep.view(handle.tokens_dp, handle.ids_ep.shape[1], rows_ep.shape[1])

    def close(self) -> None:
        pass

"""Who sends which token to whom in one layer. Pure, on the host: every rank derives the same from the same ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Routes:
    """One rank's view of a layer. Peers are the N ranks, this one included. A message has one row per token or pair,
    those of a peer behind each other, and one more for its seal."""

    send: Ints
    """Tokens of this rank to send, those for peer 0 first, each peer's in order; 0 in the place of a seal."""
    tokens_to: tuple[int, ...]  # [N] how many go to each peer
    tokens_from: tuple[int, ...]  # [N] how many come from each
    came: Ints
    """[R] where in what comes the tokens are, by source."""
    ids: NDArray[np.int32]
    """[R, k] their experts; -1 where another rank serves the pair."""
    rows_to: tuple[int, ...]  # [N] pairs that this rank serves for each peer
    rows_from: tuple[int, ...]  # [N] pairs that each peer serves for this rank
    back: Ints
    """[T * k] where in what comes back each (token, k) of this rank is."""


def routes(rank: int, serving: NDArray[np.int32], ids: NDArray[np.int32], counts: list[int]) -> Routes:
    """serving [N, E]: who computes expert e for tokens of source s; ids [sum(counts), k] by source, counts[s] tokens.

    >>> found = routes(0, np.array([[0, 1], [0, 1]], np.int32), np.array([[0, 1], [1, 0]], np.int32), [1, 1])
    >>> found.send.tolist(), found.came.tolist(), found.ids.tolist(), found.back.tolist()
    ([0, 0, 0, 0], [0, 2], [[0, -1], [-1, 0]], [0, 2])
    """
    size = len(counts)
    source = np.repeat(np.arange(size), counts)
    served_by = serving[source[:, None], ids]
    mine = served_by == rank
    wanted = mine.any(axis=1)
    first = sum(counts[:rank])
    own = served_by[first : first + counts[rank]]
    peers, tokens = np.nonzero((own[None] == np.arange(size)[:, None, None]).any(axis=2))
    tokens_to = np.bincount(peers, minlength=size)
    by = own.reshape(-1)
    order = np.argsort(by, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order)) + by[order]  # a seal behind each peer before
    return Routes(
        send=np.insert(tokens, np.cumsum(tokens_to), 0),
        tokens_to=tuple(tokens_to.tolist()),
        tokens_from=_tally(source[wanted], size),
        came=np.arange(np.count_nonzero(wanted)) + source[wanted],
        ids=np.where(mine, ids, np.int32(-1))[wanted],
        rows_to=_tally(np.repeat(source, mine.sum(axis=1)), size),
        rows_from=_tally(by, size),
        back=back,
    )


def _tally(ranks: NDArray[np.integer], size: int) -> tuple[int, ...]:
    return tuple(np.bincount(ranks, minlength=size).tolist())

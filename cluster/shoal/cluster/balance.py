"""Experts spread over ranks by their load, with spare copies of the hot ones: a pure function.

Two steps, as in DeepSeek's EPLB (github.com/deepseek-ai/EPLB): copies go, one after another, to the expert whose copies
have most load each; then the copies, heaviest first, go to the rank that has least so far. Here all layers are done at
once, a rank never holds an expert twice, and a placement that exists is mended by exchanging few experts rather than
made anew.

>>> import numpy as np
>>> loads = np.array([[90.0, 40, 30, 20, 10, 10]])
>>> placement = balanced_placement(loads, ep_size=2, slots=4)
>>> placement.holders[0]
((0, 1), (0, 1), (0,), (1,), (1,), (0,))
>>> round(imbalance(placement, loads), 3)
1.05
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.workers.experts.placement import Placement

Loads = NDArray[np.float64]

_SLACK = 0.005
"""How much worse than a placement made anew a mended one may be, as a share of the mean load."""


def balanced_placement(loads: Loads, ep_size: int, slots: int, before: Placement | None = None) -> Placement:
    """loads [layers, experts], any unit -> a placement in which each rank holds up to `slots` experts of each layer.

    `before`, of as many ranks, is changed as little as nearly the best balance allows.
    """
    layers, experts = loads.shape
    assert ep_size * slots >= experts, f"{ep_size} ranks of {slots} slots cannot hold {experts} experts"
    loads = np.maximum(np.asarray(loads, dtype=np.float64), 1e-9)
    copies = _copies(loads, min(ep_size * slots, experts * ep_size), ep_size)
    held = _packed(loads / copies, copies, ep_size, slots)
    if before is not None and before.ep_size == ep_size:
        old = _held_in(before)
        for layer in range(layers):
            shares = loads[layer] / copies[layer]
            best = float((held[layer] @ shares).max())
            limit = best + _SLACK * float(loads[layer].sum()) / ep_size
            mended = _mended(old[layer], copies[layer], shares, slots, limit)
            held[layer] = mended if mended is not None else _renumbered(held[layer], old[layer])
    holders = tuple(
        tuple(tuple(np.flatnonzero(held[layer, :, expert]).tolist()) for expert in range(experts))
        for layer in range(layers)
    )
    return Placement(ep_size, holders)


def imbalance(placement: Placement, loads: Loads) -> float:
    """Load of the fullest rank over the mean, average of the layers; every rank sends as much of the load."""
    ratios = []
    for layer in range(placement.num_layers):
        total = np.zeros(placement.ep_size)
        for expert, load in enumerate(loads[layer]):
            for source in range(placement.ep_size):
                total[placement.serving_rank(layer, expert, source)] += load / placement.ep_size
        ratios.append(float(total.max() / max(total.mean(), 1e-12)))
    return float(np.mean(ratios))


def moves(before: Placement, after: Placement) -> int:
    """Experts that some rank must read anew, over all layers."""
    return int(np.sum(_held_in(after) & ~_held_in(before)))


def _copies(loads: Loads, total: int, ep_size: int) -> NDArray[np.int64]:
    """How often each expert is held: `total` per layer, each at least once and at most once per rank."""
    layers, experts = loads.shape
    copies = np.ones((layers, experts), dtype=np.int64)
    rows = np.arange(layers)
    for _ in range(total - experts):
        shares = np.where(copies < ep_size, loads / copies, -1.0)
        copies[rows, shares.argmax(1)] += 1
    return copies


def _packed(shares: Loads, copies: NDArray[np.int64], ep_size: int, slots: int) -> NDArray[np.bool_]:
    """[layers, ranks, experts]: who holds what, all layers side by side, heaviest copy first."""
    layers, experts = shares.shape
    order = np.argsort(-shares, axis=1, kind="stable")
    queue = np.stack([np.repeat(order[layer], copies[layer, order[layer]]) for layer in range(layers)])
    held = np.zeros((layers, ep_size, experts), dtype=np.bool_)
    load = np.zeros((layers, ep_size))
    room = np.full((layers, ep_size), slots)
    rows = np.arange(layers)
    for expert in queue.T:
        taken = held[rows, :, expert]
        cost = np.where((room > 0) & ~taken, load, np.inf)
        rank = cost.argmin(1)
        stuck = ~np.isfinite(cost[rows, rank])
        held[rows, rank, expert] |= ~stuck
        load[rows, rank] += np.where(stuck, 0.0, shares[rows, expert])
        room[rows, rank] -= ~stuck
        for layer in np.flatnonzero(stuck):
            _squeeze(held[layer], load[layer], room[layer], shares[layer], int(expert[layer]))
    return held


def _squeeze(held: NDArray[np.bool_], load: Loads, room: NDArray[np.int64], shares: Loads, expert: int) -> None:
    """Every rank with room holds the expert already: another rank takes it and gives one of its own to such a rank."""
    giver = int(np.where(~held[:, expert], load, np.inf).argmin())
    taker = int(np.where(room > 0, load, np.inf).argmin())
    given = int(np.where(held[giver] & ~held[taker], shares, np.inf).argmin())
    held[giver, given], held[taker, given], held[giver, expert] = False, True, True
    load[giver] += shares[expert] - shares[given]
    load[taker] += shares[given]
    room[taker] -= 1


def _held_in(placement: Placement) -> NDArray[np.bool_]:
    held = np.zeros((placement.num_layers, placement.ep_size, len(placement.holders[0])), dtype=np.bool_)
    for layer, experts in enumerate(placement.holders):
        for expert, ranks in enumerate(experts):
            held[layer, list(ranks), expert] = True
    return held


def _mended(
    old: NDArray[np.bool_], copies: NDArray[np.int64], shares: Loads, slots: int, limit: float
) -> NDArray[np.bool_] | None:
    """One layer's old placement with the new numbers of copies, then experts exchanged between the fullest rank and
    another until no rank has more than `limit`; None when that does not succeed."""
    held = old.copy()
    for expert in np.flatnonzero(held.sum(0) > copies):
        for _ in range(int(held[:, expert].sum() - copies[expert])):
            held[int(np.where(held[:, expert], held @ shares, -1.0).argmax()), expert] = False
    for expert in np.flatnonzero(held.sum(0) < copies)[::-1]:
        for _ in range(int(copies[expert] - held[:, expert].sum())):
            cost = np.where((held.sum(1) < slots) & ~held[:, expert], held @ shares, np.inf)
            if not np.isfinite(cost.min()):
                return None
            held[int(cost.argmin()), expert] = True
    for _ in range(4 * held.shape[0]):
        load = held @ shares
        full = int(load.argmax())
        if load[full] <= limit and held.sum(1).max() <= slots:
            return held
        exchange = _best_exchange(held, shares, load, full, slots)
        if exchange is None:
            return None
        other, out, back = exchange
        held[full, out], held[other, out] = False, True
        if back >= 0:
            held[other, back], held[full, back] = False, True
    return None


def _best_exchange(
    held: NDArray[np.bool_], shares: Loads, load: Loads, full: int, slots: int
) -> tuple[int, int, int] | None:
    """(rank, expert that goes there, expert that comes back or -1) that leaves the lesser of both loads highest."""
    best, found = load[full] - 1e-12, None
    for other in np.argsort(load)[: max(4, held.shape[0] // 4)]:
        if other == full:
            continue
        outs = np.flatnonzero(held[full] & ~held[other])
        backs = np.flatnonzero(held[other] & ~held[full])
        gains = shares[outs][:, None] - np.append(shares[backs], 0.0)[None]
        if held[other].sum() >= slots:
            gains[:, -1] = -np.inf  # nothing may come without something going
        worst = np.maximum(load[full] - gains, load[other] + gains)
        worst[~np.isfinite(gains) | (gains <= 0)] = np.inf
        if not worst.size:
            continue
        place = np.unravel_index(int(worst.argmin()), worst.shape)
        if worst[place] < best:
            best = float(worst[place])
            back = int(backs[place[1]]) if place[1] < len(backs) else -1
            found = int(other), int(outs[place[0]]), back
    return found


def _renumbered(held: NDArray[np.bool_], old: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same shares, each given to the rank that holds most of it already."""
    common = (held.astype(np.int64) @ old.T.astype(np.int64)).astype(np.float64)
    result = np.zeros_like(held)
    for _ in range(len(held)):
        pack, rank = np.unravel_index(int(common.argmax()), common.shape)
        result[rank] = held[pack]
        common[pack, :] = common[:, rank] = -1.0
    return result

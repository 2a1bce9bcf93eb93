"""Which rank holds which expert: a pure function, no clock, no cluster.

>>> even_placement(num_layers=2, num_experts=5, ep_size=2).experts_of(layer=0, rank=0)
(0, 1, 2)
>>> even_placement(num_layers=2, num_experts=5, ep_size=2).experts_of(layer=1, rank=1)
(3, 4)
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.workers.experts.placement import Placement


def even_placement(num_layers: int, num_experts: int, ep_size: int) -> Placement:
    """Each rank holds one run of neighbouring experts, the same in all layers; sizes differ by at most one.

    The first `num_experts % ep_size` ranks hold one more. Every rank needs an expert: `ep_size` must not exceed
    `num_experts` (whoever reads the setting checks that).
    """
    assert 1 <= ep_size <= num_experts, f"{num_experts} experts cannot be spread over {ep_size} ranks"
    size, more = divmod(num_experts, ep_size)
    ranks = [rank for rank in range(ep_size) for _ in range(size + (rank < more))]
    layer = tuple((rank,) for rank in ranks)
    return Placement(ep_size, (layer,) * num_layers)


def moved_placement(before: Placement, came_from: Sequence[int | None]) -> Placement:
    """The placement after other ranks come or go: as even as can be, moving as few experts as that allows.

    `came_from[rank]` is the rank's number before, None for a newcomer. Spare copies are not kept: they belong to loads.

    >>> before = even_placement(num_layers=1, num_experts=6, ep_size=2)
    >>> after = moved_placement(before, [0, 1, None])
    >>> [after.experts_of(0, rank) for rank in range(3)]
    [(0, 1), (3, 4), (2, 5)]
    """
    now_of = {old: rank for rank, old in enumerate(came_from) if old is not None}
    layers = tuple(_moved_layer(layer, now_of, len(came_from)) for layer in before.holders)
    return Placement(len(came_from), layers)


def _moved_layer(layer: Sequence[tuple[int, ...]], now_of: dict[int, int], size: int) -> tuple[tuple[int, ...], ...]:
    held: dict[int, list[int]] = {rank: [] for rank in range(size)}
    homeless = []
    for expert, ranks in enumerate(layer):
        alive = [now_of[rank] for rank in ranks if rank in now_of]
        if alive:
            held[min(alive, key=lambda rank: len(held[rank]))].append(expert)
        else:
            homeless.append(expert)
    least, more = divmod(len(layer), size)
    fullest = sorted(held, key=lambda rank: -len(held[rank]))
    quota = {rank: least + (place < more) for place, rank in enumerate(fullest)}
    for rank, experts in held.items():
        homeless += experts[quota[rank] :]
        del experts[quota[rank] :]
    homes = {expert: rank for rank, experts in held.items() for expert in experts}
    for expert in sorted(homeless):
        rank = next(rank for rank in held if len(held[rank]) < quota[rank])
        held[rank].append(expert)
        homes[expert] = rank
    return tuple((homes[expert],) for expert in range(len(layer)))

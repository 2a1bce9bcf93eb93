"""Which rank holds which expert of each layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """`holders[layer][expert]` are the ranks that hold it, ascending; an expert may be held more than once.

    >>> Placement(1, ((((0,), (1,), (0, 1)),)[0],)).experts_of(layer=0, rank=1)
    (1, 2)
    """

    ep_size: int
    holders: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        for layer, experts in enumerate(self.holders):
            for expert, ranks in enumerate(experts):
                assert ranks, f"expert {expert} of layer {layer} is held nowhere"
                assert tuple(sorted(set(ranks))) == ranks, f"holders {ranks} are not ascending and unique"

    @property
    def num_layers(self) -> int:
        return len(self.holders)

    def experts_of(self, layer: int, rank: int) -> tuple[int, ...]:
        """Experts of `layer` that `rank` holds, ascending: local slot i holds the i-th."""
        return tuple(e for e, ranks in enumerate(self.holders[layer]) if rank in ranks)

    def serving_rank(self, layer: int, expert: int, source: int) -> int:
        """The rank that computes `expert` for tokens of rank `source`: its own copy if it has one, else the copies take
        turns, so that they share the load. Every rank computes the same answer.

        >>> placement = Placement(4, (((0, 2),),))
        >>> [placement.serving_rank(0, 0, source) for source in range(4)]
        [0, 0, 2, 2]
        """
        ranks = self.holders[layer][expert]
        if source in ranks:
            return source
        before = source - sum(rank < source for rank in ranks)  # sources without a copy that come before this one
        return ranks[before % len(ranks)]

"""Which rank holds which expert: a pure function, no clock, no cluster.

>>> even_placement(num_layers=2, num_experts=5, ep_size=2).experts_of(layer=0, rank=0)
(0, 1, 2)
>>> even_placement(num_layers=2, num_experts=5, ep_size=2).experts_of(layer=1, rank=1)
(3, 4)
"""

from __future__ import annotations

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

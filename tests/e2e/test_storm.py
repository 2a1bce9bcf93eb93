"""Parts of a whole cluster die under load and come back by themselves. Short form of `python -m tests.chaos.serve`."""

from __future__ import annotations

from tests.chaos.serve import storms
from tests.e2e.served import Served


async def test_streams_outlive_ray_and_the_router(cluster: Served) -> None:
    """kill -9 of Ray's control service and of a worker while that is away, of the router, and of the raylet, with
    which all workers and the controller die: 0 failed, every stream as undisturbed, and the cluster is whole again."""
    rounds = await storms(cluster, ("control service and a worker", "router", "raylet"), tokens=64, seed=3, streams=8)
    assert [[], [], []] == [round_.failed for round_ in rounds]
    assert [[], [], []] == [round_.different for round_ in rounds]

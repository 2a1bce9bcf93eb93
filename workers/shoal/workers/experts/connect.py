"""From an epoch's spec to the exchange of one of its ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shoal.workers.experts.exchange import Exchange, LocalExchange
from shoal.workers.experts.faults import Faults, FaultyGroup
from shoal.workers.experts.group import GroupSpec
from shoal.workers.experts.group_exchange import GroupExchange
from shoal.workers.experts.process_group import ProcessGroup


def connect_exchange(
    spec: GroupSpec,
    rank: int,
    top_k: int,
    timeout: float,
    device: torch.device,
    *,
    unwanted: Callable[[], bool],
    over: Callable[[], bool],
    faults: Faults | None = None,
) -> Exchange:
    """Meet the other members. Raises ExchangeError when one does not come, or once the epoch is `unwanted`.

    Every collective has `timeout` seconds, and is left where it can be once the epoch is `over`. With `faults` the
    exchange suffers what is injected there.
    """
    if spec.size == 1:
        return LocalExchange()
    kind = ProcessGroup if faults is None else FaultyGroup
    place = (spec.store_host, spec.store_port, f"{spec.group}/{spec.epoch}")
    group = kind(*place, rank, spec.size, timeout, device, unwanted, over=over)
    if isinstance(group, FaultyGroup) and faults is not None:
        group.faults = faults
    return GroupExchange(group, spec.placement, spec.epoch, top_k, device)

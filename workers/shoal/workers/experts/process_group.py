"""Collectives between the ranks of one epoch, each with a deadline.

Every epoch makes a new group under its own key prefix of the store, so that a late member of an old epoch finds
nobody. On CPU the group is gloo, on GPU NCCL. A peer's death makes every collective fail within 15-60 ms; a hung
peer is noticed at the timeout.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from shoal.workers.errors import ExchangeError
from shoal.workers.experts.rendezvous import connect


class ProcessGroup:
    """The collectives that the exchange needs, and nothing else."""

    def __init__(
        self, host: str, port: int, prefix: str, rank: int, size: int, timeout: float, device: torch.device
    ) -> None:
        """Meet the other ranks. Raises ExchangeError when they do not come within the deadline (30 s)."""
        self.rank = rank
        self.size = size
        deadline = datetime.timedelta(seconds=timeout)
        try:
            store = c10d.PrefixStore(prefix, connect(host, port))
            if device.type == "cuda":
                options = c10d.ProcessGroupNCCL.Options()
                options._timeout = deadline
                self._group: Any = c10d.ProcessGroupNCCL(store, rank, size, options)
            else:
                self._group = c10d.ProcessGroupGloo(store, rank, size, deadline)
        except (RuntimeError, ValueError) as error:
            raise ExchangeError(f"rank {rank} of {size} could not join at {host}:{port} ({prefix}): {error}") from error

    def all_gather(self, mine: Tensor) -> Tensor:
        """[...] -> [size, ...]; every rank passes the same shape."""
        gathered = mine.new_empty(self.size, *mine.shape)
        self._wait("all-gather", lambda group: group.allgather([list(gathered.unbind())], [mine]))
        return gathered

    def all_to_all(self, incoming: Tensor, outgoing: Tensor, sizes_in: list[int], sizes_out: list[int]) -> None:
        """Rows of `outgoing` split by `sizes_out` go to the ranks; theirs fill `incoming`, split by `sizes_in`."""
        self._wait("all-to-all", lambda group: group.alltoall_base(incoming, outgoing, sizes_in, sizes_out))

    def close(self) -> None:
        """Drop the connections; peers in a collective see their end. Safe to repeat, and from another thread."""
        self._group = None

    def _wait(self, what: str, start: Callable[[Any], Any]) -> None:
        group = self._group
        if group is None:
            raise ExchangeError(f"{what}: this rank has left the group")
        try:
            start(group).wait()
        except RuntimeError as error:
            raise ExchangeError(f"{what} failed: {str(error).splitlines()[0][:200]}") from error

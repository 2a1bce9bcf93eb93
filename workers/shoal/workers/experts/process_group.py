"""Collectives between the ranks of one epoch, each with a deadline.

Every epoch makes a new group under its own key prefix of the store, so that a late member of an old epoch finds
nobody. On CPU the group is gloo, on GPU NCCL. A peer's death makes every collective fail within 15-60 ms; a hung
peer is noticed at the timeout.
"""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist
from torch import Tensor

from shoal.workers.errors import ExchangeError


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
            self._store = dist.TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=30))
            store = dist.PrefixStore(prefix, self._store)
            if device.type == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = deadline
                self._group: dist.ProcessGroup = dist.ProcessGroupNCCL(store, rank, size, options)
            else:
                self._group = dist.ProcessGroupGloo(store, rank, size, deadline)
        except (RuntimeError, ValueError) as error:
            raise ExchangeError(f"rank {rank} of {size} could not join at {host}:{port} ({prefix}): {error}") from error

    def all_gather(self, mine: Tensor) -> Tensor:
        """[...] -> [size, ...]; every rank passes the same shape."""
        gathered = mine.new_empty(self.size, *mine.shape)
        try:
            self._group.allgather([list(gathered.unbind())], [mine]).wait()
        except RuntimeError as error:
            raise ExchangeError(f"all-gather failed: {_reason(error)}") from error
        return gathered

    def all_to_all(self, incoming: Tensor, outgoing: Tensor, sizes_in: list[int], sizes_out: list[int]) -> None:
        """Rows of `outgoing` split by `sizes_out` go to the ranks; theirs fill `incoming`, split by `sizes_in`."""
        try:
            self._group.alltoall_base(incoming, outgoing, sizes_in, sizes_out).wait()
        except RuntimeError as error:
            raise ExchangeError(f"all-to-all failed: {_reason(error)}") from error

    def close(self) -> None:
        """Drop the connections; peers in a collective see their end."""
        del self._group, self._store


def _reason(error: RuntimeError) -> str:
    return str(error).splitlines()[0][:200]

"""Collectives between the ranks of one epoch, each with a deadline.

Every epoch makes a new group under its own key prefix of the store, so that a late member of an old epoch finds
nobody. On CPU the group is gloo, on GPU NCCL; where two ranks share one GPU, which NCCL refuses, it is gloo over copies
in the host's memory, for all. A peer's death makes every collective fail within 15-60 ms. A hung peer is noticed at the
timeout, when somebody kills it, or when this rank is told that the epoch is over: gloo's threads wait on, with tensors
that nobody uses any more, and this rank does not. NCCL cannot be left so.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from shoal.workers.errors import ExchangeError
from shoal.workers.experts.rendezvous import PATIENCE, connect

_NEWER = "a newer epoch is wanted"
_LOOK = datetime.timedelta(milliseconds=100)
"""Between two looks whether the epoch is over."""


class ProcessGroup:
    """The collectives that the exchange needs, and nothing else."""

    def __init__(
        self,
        host: str,
        port: int,
        prefix: str,
        rank: int,
        size: int,
        timeout: float,
        device: torch.device,
        unwanted: Callable[[], bool] = lambda: False,
        place: str = "",
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Meet the other ranks. Raises ExchangeError when one does not come in time, or once `unwanted` says so.
        Collectives are left once `over` says so.

        `place` names the piece of hardware that this rank computes on, where no other may share it unnoticed; empty:
        what `place_of` says of `device`.
        """
        self.rank = rank
        self.size = size
        self._over = over
        deadline = datetime.timedelta(seconds=timeout)
        try:
            self._meeting = connect(host, port)  # torch keeps the half of it that is C++, and calls the other one
            store = c10d.PrefixStore(prefix, self._meeting)
            self.staged = crowded(_gather_all(store, rank, size, unwanted, place or place_of(device)))
            if device.type == "cuda" and not self.staged:
                options = c10d.ProcessGroupNCCL.Options()
                options._timeout = deadline
                self._group: Any = c10d.ProcessGroupNCCL(store, rank, size, options)
                self._leaves = False  # its waits end when the work is queued, and block when they have a timeout
            else:
                self._leaves = True
                self._group = _unless(unwanted, partial(c10d.ProcessGroupGloo, store, rank, size, deadline))
        except (RuntimeError, ValueError, OSError) as error:
            raise ExchangeError(f"rank {rank} of {size} could not join at {host}:{port} ({prefix}): {error}") from error

    def all_gather(self, mine: Tensor) -> Tensor:
        """[...] -> [size, ...]; every rank passes the same shape."""
        sent = mine.to("cpu") if self.staged else mine
        gathered = sent.new_empty(self.size, *sent.shape)
        self._wait("all-gather", lambda group: group.allgather([list(gathered.unbind())], [sent]))
        return gathered.to(mine.device)

    def all_to_all(self, incoming: Tensor, outgoing: Tensor, sizes_in: list[int], sizes_out: list[int]) -> None:
        """Rows of `outgoing` split by `sizes_out` go to the ranks; theirs fill `incoming`, split by `sizes_in`."""
        if not self.staged:
            self._wait("all-to-all", lambda group: group.alltoall_base(incoming, outgoing, sizes_in, sizes_out))
            return
        sent = outgoing.view(torch.uint8).to("cpu")  # bytes: gloo need not know the dtype
        received = torch.empty(incoming.view(torch.uint8).shape, dtype=torch.uint8)
        self._wait("all-to-all", lambda group: group.alltoall_base(received, sent, sizes_in, sizes_out))
        incoming.view(torch.uint8).copy_(received)

    def close(self) -> None:
        """Drop the connections; peers in a collective see their end. Safe to repeat, and from another thread.

        Nobody waits for it: gloo joins a thread of its own then, which takes five seconds now and then."""
        group, self._group = [self._group, self._meeting], None
        if group[0] is not None:
            threading.Thread(target=group.clear, name="close-group", daemon=True).start()

    def _wait(self, what: str, start: Callable[[Any], Any]) -> None:
        group = self._group
        if group is None:
            raise ExchangeError(f"{what}: this rank has left the group")
        try:
            work = start(group)
            while self._leaves and not self._done(work):
                if self._over():
                    raise ExchangeError(f"{what} was left: the epoch is over")
            work.wait()
        except RuntimeError as error:
            cause = error.with_traceback(None)
            raise ExchangeError(f"{what} failed: {str(error).splitlines()[0][:200]}") from cause
        finally:
            # Whoever lets go of a group last waits for gloo's threads, up to the deadline of what they wait for. That
            # is `close`'s thread, never one in which an exception's frames still held the group.
            del group

    @staticmethod
    def _done(work: Any) -> bool:
        """Wait a little for it; whether it ended, well or not."""
        try:
            work.wait(_LOOK)
        except RuntimeError:  # its own failure, or the wait's end
            return bool(work.is_completed())
        return True


def _unless(unwanted: Callable[[], bool], connect_all: Callable[[], Any]) -> Any:
    """The group that `connect_all` makes. Once it is `unwanted` that is left to itself: a peer that came and went for a
    newer epoch would be waited for up to several times the deadline. Raises ExchangeError then, and its errors."""
    made, left, lock = list[Any](), list[bool](), threading.Lock()

    def work() -> None:
        try:
            group = connect_all()
        except Exception as error:  # whatever it is, somebody waits for it
            group = error
        with lock:
            if not left:
                made.append(group)

    thread = threading.Thread(target=work, name="connect-group", daemon=True)
    thread.start()
    while not made:
        thread.join(0.05)
        if unwanted():
            with lock:
                left.append(True)
            break
    if not made:
        raise ExchangeError(_NEWER)
    group = made.pop()  # held by no frame that an exception might keep
    if isinstance(group, Exception):
        raise group
    return group


def place_of(device: torch.device) -> str:
    """A name of the GPU that no other has, the same in every process; empty for a CPU, which ranks may share."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def crowded(places: Sequence[str]) -> bool:
    """Whether two ranks compute on one GPU. Every rank asks this of the same places, so all agree.

    >>> crowded(["GPU-1", "GPU-2"]), crowded(["GPU-1", "GPU-1"]), crowded(["", ""])
    (False, True, False)
    """
    named = [place for place in places if place]
    return len(set(named)) < len(named)


def _gather_all(store: c10d.Store, rank: int, size: int, unwanted: Callable[[], bool], place: str) -> list[str]:
    """Wait until every rank has come; their places."""
    store.set(f"here/{rank}", place)
    everybody = [f"here/{peer}" for peer in range(size)]
    give_up = time.monotonic() + PATIENCE
    while not store.check(everybody):
        if unwanted():
            raise ExchangeError(_NEWER)
        if time.monotonic() > give_up:
            missing = [str(peer) for peer in range(size) if not store.check([f"here/{peer}"])]
            raise ExchangeError(f"rank {', '.join(missing)} did not come within {PATIENCE:g} s")
        time.sleep(0.002)
    return [store.get(peer).decode() for peer in everybody]

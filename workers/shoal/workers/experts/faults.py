"""Faults that are put into the exchange on purpose. Nothing of this is in the way unless `worker.chaos` allows it."""

from __future__ import annotations

import threading
import time
from enum import Enum

import torch
from torch import Tensor

from shoal.workers.errors import ExchangeError
from shoal.workers.experts.process_group import ProcessGroup


class Fault(Enum):
    """What can be wrong with a rank's exchange."""

    DELAY = "delay"  # every collective takes longer
    DROP = "drop"  # the rank takes no part
    CORRUPT = "corrupt"  # one bit of the next message is another


class Faults:
    """What is wrong now, whatever epoch; set from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = {Fault.DELAY: 0.0, Fault.DROP: 0.0}
        self._delay = 0.0
        self._corrupt = False

    def inject(self, fault: Fault, seconds: float, amount: float) -> None:
        """From now on, for `seconds`; a corrupted message is one."""
        with self._lock:
            if fault is Fault.CORRUPT:
                self._corrupt = True
                return
            self._until[fault] = time.monotonic() + seconds
            if fault is Fault.DELAY:
                self._delay = amount

    def suffer(self) -> None:
        """Before a collective: wait as the faults of the moment demand."""
        while (left := self._until[Fault.DROP] - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
        if self._until[Fault.DELAY] > time.monotonic():
            time.sleep(self._delay)

    def take_corruption(self) -> bool:
        """Whether the message that just came is to be damaged; once."""
        with self._lock:
            taken, self._corrupt = self._corrupt, False
            return taken


class FaultyGroup(ProcessGroup):
    """A process group that suffers."""

    faults: Faults

    def all_gather(self, mine: Tensor) -> Tensor:
        """As the sound one, when the faults let it."""
        self.faults.suffer()
        return super().all_gather(mine)

    def all_to_all(self, incoming: Tensor, outgoing: Tensor, sizes_in: list[int], sizes_out: list[int]) -> None:
        """As the sound one, when the faults let it."""
        self.faults.suffer()
        super().all_to_all(incoming, outgoing, sizes_in, sizes_out)
        if incoming.numel() and self.faults.take_corruption():
            incoming.view(torch.uint8).view(-1)[0] ^= 1


def require(allowed: bool) -> None:
    """Raise ExchangeError unless faults were allowed when the worker started."""
    if not allowed:
        raise ExchangeError("faults are injected only where worker.chaos allows it")

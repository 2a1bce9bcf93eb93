"""What the host wants of a step, on its way from the device: one wait for all of it, as late as can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Download:
    """Copies that were begun when it was made. On a CPU there is nothing to wait for."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Begins the copies, in the order of the current stream; the tensors may be used and freed at once."""
        self._done: torch.cuda.Event | None = None
        if not tensors or tensors[0].device.type == "cpu":
            self._host = list(tensors)
            return
        self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.current_stream(tensors[0].device).record_event()

    def wait(self) -> list[Tensor]:
        """On the host, once everything before them on the device is computed."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        return self._host


Fetch = Callable[[Sequence[Tensor]], Download]
"""How downloads are begun."""

"""A step's integers on their way to the device: all of them in one copy that the host does not wait for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int32] | NDArray[np.int64]

_ALIGNED = 16  # bytes: what the kernels' vector loads may count on
_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


def offsets(arrays: Sequence[Ints]) -> tuple[list[int], int]:
    """Where each array begins when they lie one after the other, and how many bytes they take. Pure.

    >>> offsets([np.zeros(3, np.int32), np.zeros((2, 2), np.int64)])
    ([0, 16], 48)
    """
    sizes = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]
    return [0, *itertools.accumulate(sizes)][:-1], sum(sizes)


def views(inbox: Tensor, arrays: Sequence[Ints]) -> list[Tensor]:
    """What was packed into `inbox` u8 [bytes], as tensors of the arrays' shapes that lie in it."""
    starts, _ = offsets(arrays)
    return [
        inbox[start : start + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


class Upload:
    """Two host buffers that take turns: one is filled while the copy of the other may still run.

    Belongs to one thread. On a GPU the buffers are pinned and the copies asynchronous, in the current stream's order.
    """

    def __init__(self, device: torch.device, *, packed: bool | None = None) -> None:
        """`packed` False hands arrays over where they are, which only a CPU can read; None: what fits the device."""
        self._device = device
        self._packed = device.type != "cpu" if packed is None else packed
        self._slots = itertools.cycle((_Slot(device), _Slot(device)))

    def __call__(self, arrays: Sequence[Ints]) -> list[Tensor]:
        """The arrays on the device, in memory of their own. They may be changed only where nothing is packed."""
        if not self._packed:
            return [torch.from_numpy(array) for array in arrays]
        inbox = torch.empty(offsets(arrays)[1], dtype=torch.uint8, device=self._device)
        self.into(inbox, arrays)
        return views(inbox, arrays)

    def into(self, inbox: Tensor, arrays: Sequence[Ints]) -> None:
        """Pack the arrays to the beginning of `inbox` u8 on the device. They may be changed at once."""
        starts, size = offsets(arrays)
        assert size <= inbox.numel(), f"{size} bytes for an inbox of {inbox.numel()}"
        slot = next(self._slots)
        host = slot.room(size)
        memory = host.numpy()
        for start, array in zip(starts, arrays, strict=True):
            memory[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        inbox[:size].copy_(host[:size], non_blocking=True)
        slot.sent()


class _Slot:
    """One buffer, and when its last copy is over."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._host = torch.empty(0, dtype=torch.uint8)
        self._done = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]  # torch's own

    def room(self, size: int) -> Tensor:
        """Memory for `size` bytes that no copy reads any more."""
        if self._done is not None:
            self._done.synchronize()  # two steps ago: long over
        if self._host.numel() < size:
            self._host = torch.empty(max(1 << 16, 2 * size), dtype=torch.uint8, pin_memory=self._cuda)
        return self._host

    def sent(self) -> None:
        """Its copy is on its way."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self._device))  # by itself it asks the current device

"""Byte ranges of weight files on their way to the device: several threads read, and on a GPU copies run beside them.

On a CPU every thread reads its part to where it belongs. On a GPU it reads to one of a ring of pinned buffers, and the
copy from there to the device runs while it reads the next part to another.
"""

from __future__ import annotations

import os
import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.workers.checkpoint.safetensors_file import TensorFile

PART = 16 << 20
"""Bytes of one part: large enough for a disk and a bus, small enough that threads end together."""

_MOST_THREADS = 16


class Reader:
    """Reads to one device. `read` may be called from several threads at once."""

    def __init__(
        self, device: torch.device | None = None, threads: int = 1, *, staged: bool | None = None, part: int = PART
    ) -> None:
        """`staged` reads through the ring, which a GPU needs; None: what fits the device."""
        self.device = device or torch.device("cpu")
        self._part = part
        self._staged = self.device.type != "cpu" if staged is None else staged
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]  # torch's own
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read") if threads > 1 or self._staged else None
        self._ring: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        for _ in range(2 * threads if self._staged else 0):
            self._ring.put(_Buffer(torch.empty(part, dtype=torch.uint8, pin_memory=cuda)))

    def read(self, file: TensorFile, offset: int, into: Tensor, tensor: str) -> None:
        """Fill `into`, contiguous and on the device, from `offset` of `file`. Done when it returns. Raises
        CheckpointError, which names the `tensor`."""
        target = into.view(-1).view(torch.uint8)
        size = target.numel()
        if self._pool is None or (size <= self._part and not self._staged):
            file.read_into(target.numpy().data, offset, tensor)
            return
        if self._stream is not None:  # whoever had this memory before may still be computing
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

        def read(start: int) -> None:
            part = target[start : start + self._part]
            if self._staged:
                self._read_staged(file, offset + start, part, tensor)
            else:
                file.read_into(part.numpy().data, offset + start, tensor)

        for _ in self._pool.map(read, range(0, size, self._part)):
            pass
        if self._stream is not None:
            self._stream.synchronize()

    def close(self) -> None:
        """End its threads. Safe to repeat."""
        if self._pool is not None:
            self._pool.shutdown()

    def _read_staged(self, file: TensorFile, offset: int, into: Tensor, tensor: str) -> None:
        buffer = self._ring.get()
        try:
            if buffer.copied is not None:
                buffer.copied.synchronize()
            host = buffer.memory[: into.numel()]
            file.read_into(host.numpy().data, offset, tensor)
            if self._stream is None:
                into.copy_(host)
                return
            with torch.cuda.stream(self._stream):
                into.copy_(host, non_blocking=True)
                buffer.copied = self._stream.record_event()
        finally:
            self._ring.put(buffer)


@dataclass(slots=True)
class _Buffer:
    """Host memory, and when what was read to it last is on the device."""

    memory: Tensor
    copied: torch.cuda.Event | None = None


def reading_threads(device: torch.device, threads: int) -> int:
    """How many threads read for `device`: a CPU's are counted out to its worker, a GPU's bus is fed by more."""
    return threads if device.type == "cpu" else min(_MOST_THREADS, len(os.sched_getaffinity(0)))

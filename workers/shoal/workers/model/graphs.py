"""Work that is recorded once and then replayed, over tensors that stay where they are.

On a GPU that is a CUDA graph: a step of some thousand launches costs the host one. Elsewhere recording is remembering:
the same code paths, buffers and mistakes, which is what tests run.

Recorded work must not look at a value on the host, must not allocate what outlives it, and must read and write only
tensors that live as long as the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], None]


class Recorder(Protocol):
    """How work is recorded."""

    def record(self, work: Work) -> Work:
        """Run `work` at least once, and give back what runs it again. Raises RuntimeError when it cannot be recorded;
        nothing is changed then but what `work` itself wrote."""
        ...


class EagerRecorder:
    """Replays by running the work again."""

    def record(self, work: Work) -> Work:
        work()
        return work


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they never run at the same time.

    Recorded on a stream of its own. Other threads may go on using the device meanwhile (experts of the next epoch are
    read then), so only this thread's unsafe calls end a recording.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()  # compiles kernels and warms what is allocated lazily: neither can be recorded
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
            torch.cuda.current_stream().wait_stream(self._stream)
        replay: Work = graph.replay
        return replay


def recorder_for(device: torch.device) -> Recorder:
    """What records best on `device`."""
    return CudaRecorder(device) if device.type == "cuda" else EagerRecorder()


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Batch sizes that steps are recorded for: powers of two up to 64, then every 64, and `most` itself. Pure.

    >>> sizes_up_to(160), sizes_up_to(3)
    ((1, 2, 4, 8, 16, 32, 64, 128, 160), (1, 2, 3))
    """
    sizes = [1 << i for i in range(7)] + list(range(128, most, 64))
    return (*(size for size in sizes if size < most), most)

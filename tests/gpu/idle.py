"""How much of a time a device does nothing, from the profiler's record of what ran on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def share_of(work: Callable[[], Any], times: int) -> tuple[float | None, float]:
    """Share of the time in which nothing ran, between the first and the last thing that ran, and how many things ran
    per call. None when nothing was seen, as without a GPU. The profiler itself costs the host some time."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as record:
        for _ in range(times):
            work()
    spans = [
        (float(event.time_range.start), float(event.time_range.end))
        for event in record.events() or ()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return (idle_share(spans), len(spans) / times) if spans else (None, 0.0)


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """Of the time from the first beginning to the last end, what no span covers; spans may overlap.

    >>> idle_share([(0, 2), (1, 4), (6, 8)])
    0.25
    """
    ordered = sorted(spans)
    busy, reached = 0.0, ordered[0][0]
    for begin, end in ordered:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - ordered[0][0])

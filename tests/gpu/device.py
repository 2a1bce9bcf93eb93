"""What the device itself can do, and that it makes the same synthetic weights as a CPU; start-up from a disk."""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.workers.alone import make_engine
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.checkpoint.layout import hf_specs, stored_bytes
from shoal.workers.checkpoint.synthetic import fill
from shoal.workers.model.timing import Stopwatch
from tests.gpu import seats
from tests.gpu.extent import Extent, sizes_for
from tests.gpu.telling import Teller

_CALLS = 8  # between two looks at the clock, so that launching does not count
_SAMPLE = 1 << 20  # values of each kind of tensor that are compared


def rates(extent: Extent, tell: Teller) -> None:
    """Copying and a bf16 matmul, as bounds are made of them."""
    size, side = (1 << 31, 8192) if extent.on_gpu else (1 << 24, 256)
    source = torch.empty(size, dtype=torch.uint8, device=extent.device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / _median(lambda: target.copy_(source), extent)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=extent.device) for _ in range(2))
    flops = 2 * side**3 / _median(lambda: a @ b, extent)
    tell.row("copy", bandwidth / 1e12, "TB/s")
    tell.row("bf16 matmul of the vendor's library", flops / 1e12, "TFLOP/s")
    tell.fact(bandwidth=bandwidth, flops=flops)


def noise(extent: Extent, tell: Teller) -> None:
    """The middle of a tensor of each kind, made here and on a CPU: the same bits."""
    specs = {spec.name.rsplit(".", 1)[-1] if "experts" in spec.name else spec.name: spec
             for spec in hf_specs(extent.large.config())}  # fmt: skip
    for name in ("gate_up_proj_blocks", "down_proj_scales", "gate_up_proj_bias", "lm_head.weight"):
        spec, dtype = specs[name], torch.uint8 if specs[name].dtypes[0] == "U8" else torch.bfloat16
        count = 1
        for length in spec.shape:
            count *= length
        first = count // 2 // 4 * 4
        here, there = (
            torch.empty(min(_SAMPLE, count - first), dtype=dtype, device=device) for device in (extent.device, "cpu")
        )
        fill(here, spec, 0, first)
        fill(there, spec, 0, first)
        tell.check(f"synthetic {name} is that of a CPU", torch.equal(here.cpu(), there), values=here.numel())


def start(extent: Extent, tell: Teller) -> None:
    """The smaller model written to a disk, read from it to the first token: seconds of each phase."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-model-"))
    try:
        free = shutil.disk_usage(folder).free
        need = 2 * sum(_bytes(extent))
        if free < need:
            tell.note(f"start from a disk: {need / 1e9:.0f} GB are wanted, {free / 1e9:.0f} GB are free")
            return
        _start(folder / "model", extent, tell)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(path: Path, extent: Extent, tell: Teller) -> None:
    name, total = extent.small.name, sum(_bytes(extent))
    begin = time.perf_counter()
    make_checkpoint(path, extent.small, synthetic=True)
    took = time.perf_counter() - begin
    tell.row(f"{name} synthetic checkpoint written", total / took / 1e9, "GB/s", seconds=took)
    for number, state in enumerate(("just written", "read before")):
        watch, marks = Stopwatch(), [time.perf_counter()]
        checkpoint = open_checkpoint(path)
        marks.append(time.perf_counter())
        sizes = sizes_for(checkpoint.config, extent, batch=4, kv_tokens=4096)
        engine = make_engine(checkpoint, extent.target(), sizes, watch=watch)
        if extent.on_gpu:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        engine.submit(seats.fresh(engine, f"start {number}", 20, 1))
        while engine.has_work:
            engine.step()
        marks.append(time.perf_counter())
        opened, made, first = (after - before for before, after in itertools.pairwise(marks))
        phases = {phase: round(seconds, 3) for phase, seconds in watch.seconds.items()}
        tell.row(f"{name} from a disk, {state}, to the first token", marks[-1] - marks[0], "s",
                 open=opened, engine=made, first_token=first, phases=phases)  # fmt: skip
        tell.row(f"{name} from a disk, {state}, weights", checkpoint.bytes_read / made / 1e9, "GB/s")
        checkpoint.close()
        del engine


def _bytes(extent: Extent) -> list[int]:
    return [stored_bytes(spec) for spec in hf_specs(extent.small.config())]


def _median(work: Callable[[], object], extent: Extent) -> float:
    """Seconds of one call, of several that the device does one after another."""

    def settle() -> None:
        if extent.on_gpu:
            torch.cuda.synchronize()

    took = []
    for _ in range(12):
        settle()
        begin = time.perf_counter()
        for _ in range(_CALLS):
            work()
        settle()
        took.append((time.perf_counter() - begin) / _CALLS)
    return statistics.median(took[2:])

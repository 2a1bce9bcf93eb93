"""Layer by layer at full width: kernels beside the torch twin, both given what the twin made of the layer before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from shoal.workers.alone import make_engine
from shoal.workers.engine.batch import step_ints
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.scheduler import Work
from shoal.workers.model.model import ModelInput
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.upload import Upload
from tests.gpu import seats
from tests.gpu.extent import Extent, sizes_for
from tests.gpu.telling import Teller

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
"""Of a row: root mean square of the error by that of the row. bf16 alone rounds by 2e-3, and attention's weights are
rounded before they meet the values."""
SAME_CHOICES = 0.98
"""Of (token, expert) pairs: where two experts are as good as equal, the last bit decides."""


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Kernels of that kind."""
    before = os.environ.get("SHOAL_KERNELS")
    os.environ["SHOAL_KERNELS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["SHOAL_KERNELS"]
        else:
            os.environ["SHOAL_KERNELS"] = before


def engines_of(extent: Extent, *kinds: str) -> dict[str, Engine]:
    """One engine of a few layers per kind of kernels, over the same weights."""
    engines = {}
    for kind in kinds:
        with backend(kind):
            source = extent.source(extent.large, extent.layers)
            sizes = sizes_for(source.config, extent, batch=4, kv_tokens=2048)
            engines[kind] = make_engine(source, extent.target(), replace(sizes, graphs=False))
    return engines


def compare(extent: Extent, tell: Teller) -> None:
    """A check per layer and half: two prompts at once, then one more token of each."""
    check(engines_of(extent, "triton", "torch"), extent, tell)


def check(engines: dict[str, Engine], extent: Extent, tell: Teller) -> None:
    """The same of two engines, the second of which is the twin's."""
    lengths = (extent.layer_tokens, max(2, extent.layer_tokens // 3))
    steps = {kind: _steps(engine, lengths) for kind, engine in engines.items()}
    for number, name in enumerate(("prompts", "decode")):
        _step(name, engines, {kind: made[number] for kind, made in steps.items()}, tell)


def _steps(engine: Engine, lengths: tuple[int, ...]) -> tuple[ModelInput, ModelInput]:
    """The prompts of all sequences, and one token more of each; their blocks are theirs."""
    block, upload, sequences = engine.kv.block_size, Upload(engine.model.target.device), []
    for i, length in enumerate(lengths):
        sequences.append(seats.fresh(engine, f"layers {i}", length + 1, 1))
        engine.kv.extend(sequences[-1].tables, 0, length + 1)
    prompts = step_ints([Work(s, length) for s, length in zip(sequences, lengths, strict=True)], block).upload(upload)
    for sequence, length in zip(sequences, lengths, strict=True):
        sequence.computed = length
    return prompts, step_ints([Work(s, 1) for s in sequences], block).upload(upload)


@torch.inference_mode()
def _step(name: str, engines: dict[str, Engine], steps: dict[str, ModelInput], tell: Teller) -> None:
    watch, models = Stopwatch(), {kind: engine.model for kind, engine in engines.items()}
    mine, _ = models
    config = models["torch"].config

    def both(what: str, expected: Tensor, found: Tensor) -> None:
        worst = row_error(expected, found)
        limit = TOLERANCE[expected.dtype]
        tell.check(f"{name}, {what}", worst <= limit, value=float(f"{worst:.3g}"), limit=limit)

    stream = models["torch"].embed(steps["torch"].ids)
    for layer in range(config.num_layers):
        kind = "sliding" if config.layer_windows[layer] is not None else "full"
        routed = {}
        for who, model in models.items():
            with backend(who):
                routed[who] = model.to_experts(layer, stream, steps[who], model.kv, watch)
        twin, ours = routed["torch"], routed[mine]
        both(f"layer {layer}, {kind} attention", twin.x_dp - stream.x, ours.x_dp - stream.x)
        both(f"layer {layer}, norm before the experts", twin.t_dp, ours.t_dp)
        same = same_choices(twin.ids_dp, ours.ids_dp)
        tell.check(f"{name}, layer {layer}, chosen experts", same >= SAME_CHOICES, value=same, limit=SAME_CHOICES)
        rows, sums = {}, {}
        for who, model in models.items():
            with backend(who):
                rows[who] = model.experts[layer](twin.t_dp, twin.ids_dp, watch)
        for who, model in models.items():
            with backend(who):
                sums[who] = model.from_experts(layer, twin, rows["torch"], watch)
        both(f"layer {layer}, experts", rows["torch"].flatten(0, 1), rows[mine].flatten(0, 1))
        both(f"layer {layer}, weighted sum", sums["torch"].x, sums[mine].x)
        stream = sums["torch"]
    last, logits = stream.x[-min(4, len(stream.x)) :], {}
    for who, model in models.items():
        with backend(who):
            logits[who] = model.unembed(last)
    worst = row_error(logits["torch"], logits[mine])
    limit = TOLERANCE[last.dtype]
    tell.check(f"{name}, logits", worst <= limit, value=float(f"{worst:.3g}"), limit=limit)


def row_error(expected: Tensor, found: Tensor) -> float:
    """The worst row's: root mean square of the difference by that of what is expected. What is not finite is inf."""
    a, b = expected.double(), found.double()
    scale = a.square().mean(-1).sqrt().clamp(min=1e-12)
    errors = (a - b).square().mean(-1).sqrt() / scale
    return float(errors.max()) if bool(torch.isfinite(errors).all()) else float("inf")


def same_choices(expected: Tensor, found: Tensor) -> float:
    """Share of chosen experts that were chosen by both, whatever their order."""
    hits = (expected[:, :, None] == found[:, None, :]).any(-1)
    return float(hits.float().mean())

"""Decode, prefill and saturated load of one model, each beside what the device could do at best."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from shoal.cluster.plan import roofline
from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import Gpu
from shoal.cluster.plan.memory import largest_batch, rank_memory
from shoal.workers.alone import make_engine
from shoal.workers.engine.engine import Engine
from shoal.workers.model.timing import Stopwatch
from tests.gpu import idle, seats
from tests.gpu.extent import GOALS, IDLE_GOAL, SATURATED_GOALS, Extent, sizes_for
from tests.gpu.telling import Teller


@dataclass(frozen=True, slots=True)
class Model:
    """An engine with all its experts, and what bounds it."""

    name: str
    engine: Engine
    footprint: Footprint
    gpu: Gpu | None
    goals: bool
    """Whether this is the GPU that the issue's goals are for."""
    saturated_batch: int


def build(name: str, extent: Extent, gpu: Gpu | None, goals: bool, tell: Teller) -> Model:
    """Synthetic weights straight in the device's memory, the rest of it for KV; says what each phase took."""
    preset, target, watch = extent.preset(name), extent.target(), Stopwatch()
    source, footprint = extent.source(preset), Footprint(preset.config(), target.dtype.itemsize)
    context = sum(extent.saturated)
    if extent.on_gpu:
        memory = torch.cuda.get_device_properties(target.device).total_memory
        batch = largest_batch(footprint, memory, 1, context, step_tokens=extent.step_tokens, most=extent.most_saturated)
        most = max(batch, *extent.batches)
        kv = rank_memory(footprint, memory, 1, most, step_tokens=extent.step_tokens).kv_memory
        sizes = sizes_for(preset.config(), extent, batch=most, kv_memory=kv)
    else:
        batch, most = extent.most_saturated, max(extent.most_saturated, *extent.batches)
        longest = max(*extent.prompts, *extent.contexts, context) + seats.RUN_ON
        sizes = sizes_for(preset.config(), extent, batch=most, kv_tokens=most * longest)
    begin = time.perf_counter()
    engine = make_engine(source, target, sizes, watch=watch)
    _settle(extent)
    seconds = time.perf_counter() - begin
    tell.row(f"{preset.name} start, synthetic in memory", seconds, "s", phases=_rounded(watch))
    begin = time.perf_counter()
    seats.seat(engine, "first", min(extent.contexts), 1, seats.RUN_ON)
    engine.step()
    _settle(extent)
    tell.row(f"{preset.name} first step", time.perf_counter() - begin, "s")
    seats.clear(engine)
    seats.fill_cache(engine)
    return Model(preset.name, engine, footprint, gpu, goals, batch)


def measure(model: Model, extent: Extent, tell: Teller) -> None:
    """Every row of the model, the cheapest and most asked for first."""
    for context in extent.contexts:
        for batch in extent.batches:
            _decode(model, batch, context, extent, tell)
    for prompt in extent.prompts:
        _prefill(model, prompt, extent, tell)
    for batch in dict.fromkeys((extent.batches[0], extent.batches[-2])):
        _idle(model, batch, extent, tell)
    _saturated(model, extent, tell)


def _decode(model: Model, batch: int, context: int, extent: Extent, tell: Teller) -> None:
    engine, case = model.engine, f"{model.name} decode, batch {batch}, context {context}"
    if not seats.holds(engine, batch, context):
        tell.note(f"{case}: does not fit the memory that is left for KV")
        return
    for i in range(batch):
        seats.seat(engine, f"{case} {i}", context, 1, seats.RUN_ON)
    hit = seats.experts_hit(engine, engine.step)
    seats.timed_steps(engine, extent.seconds / 4, least=3, most=20)
    took = seats.timed_steps(engine, extent.seconds)
    seats.clear(engine)
    step = statistics.median(took)
    bound = None
    if model.gpu is not None:
        bound = roofline.decode(model.footprint, model.gpu, batch, context).tokens_per_second
    goal = GOALS.get(model.name, {}).get(batch) if model.goals and context == 1024 else None
    quartiles = statistics.quantiles(took, n=4)
    tell.row(
        case, batch / step, "tok/s", bound=bound, goal=goal, step_ms=step * 1e3, steps=len(took),
        step_quartiles_ms=[round(q * 1e3, 4) for q in (quartiles[0], quartiles[2])], experts_hit=hit,
        uniform_hit=roofline.experts_hit(
            model.footprint.config.num_experts, model.footprint.config.experts_per_token, batch
        ),
    )  # fmt: skip


def _prefill(model: Model, prompt: int, extent: Extent, tell: Teller) -> None:
    engine, case = model.engine, f"{model.name} prefill of {prompt}"
    if not seats.holds(engine, 1, prompt):
        tell.note(f"{case}: does not fit the memory that is left for KV")
        return
    took: list[float] = []
    while len(took) < 2 or (sum(took) < 2 * extent.seconds and len(took) < 7):
        engine.submit(seats.fresh(engine, f"{case} {len(took)}", prompt, 1))
        begin = time.perf_counter()
        while engine.has_work:
            engine.step()
        took.append(time.perf_counter() - begin)
    seconds = statistics.median(took[1:])  # the first one compiles
    bound = None if model.gpu is None else prompt / roofline.prefill(model.footprint, model.gpu, prompt)
    tell.row(case, prompt / seconds, "tok/s", bound=bound, milliseconds=seconds * 1e3)


def _saturated(model: Model, extent: Extent, tell: Teller) -> None:
    """As many sequences as fit, each replaced by a new prompt when it ends; they begin spread over their lives."""
    engine, (prompt, output), batch = model.engine, extent.saturated, model.saturated_batch
    case = f"{model.name} saturated, {prompt} in, {output} out"
    if batch == 0 or not seats.holds(engine, batch, prompt + output):
        tell.note(f"{case}: does not fit the memory that is left for KV")
        return
    for i in range(batch):
        done = 1 + i * (output - 2) // batch
        seats.seat(engine, f"{case} {i}", prompt + done, done, output)
    new = batch

    def run(seconds: float) -> tuple[int, int, int, float]:
        nonlocal new
        counters = engine.counters
        tokens, prompts, steps = counters.generated_tokens, counters.prompt_tokens, counters.steps
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            while len(engine.running) + len(engine.waiting) < batch:
                engine.submit(seats.fresh(engine, f"{case} {new}", prompt, output))
                new += 1
            engine.step()
        took = time.perf_counter() - begin
        return counters.generated_tokens - tokens, counters.prompt_tokens - prompts, counters.steps - steps, took

    run(3 * extent.seconds)
    generated, prompts, steps, took = run(12 * extent.seconds)
    seats.clear(engine)
    bound = None if model.gpu is None else roofline.saturated(model.footprint, model.gpu, batch, prompt, output)
    tell.row(
        case, generated / took, "output tok/s", bound=bound, batch=batch, seconds=took, steps=steps,
        prompt_tokens=prompts, goal=SATURATED_GOALS.get(model.name) if model.goals else None,
    )  # fmt: skip


def _idle(model: Model, batch: int, extent: Extent, tell: Teller) -> None:
    """Which share of the time of decode steps the GPU does nothing."""
    engine, context = model.engine, min(extent.contexts)
    case = f"{model.name} GPU idle while decoding, batch {batch}, context {context}"
    if not seats.holds(engine, batch, context):
        tell.note(f"{case}: does not fit the memory that is left for KV")
        return
    for i in range(batch):
        seats.seat(engine, f"{case} {i}", context, 1, seats.RUN_ON)
    seats.timed_steps(engine, 0.0)
    share, kernels = idle.share_of(engine.step, 20)
    seats.clear(engine)
    if share is None:
        tell.note(f"{case}: the profiler saw no work on the device")
        return
    goal = IDLE_GOAL if model.goals else None
    tell.row(case, share, "share of the time", goal=goal, least=False, kernels_per_step=kernels)


def _settle(extent: Extent) -> None:
    if extent.on_gpu:
        torch.cuda.synchronize()


def _rounded(watch: Stopwatch) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in watch.seconds.items()}

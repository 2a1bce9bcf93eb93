"""How near the engine comes to what the machine can do, and what Python costs.

A decode step must read every dense weight, every expert that some token chose and the sequences' keys and values, and
must do two operations per weight and token. The roofline is the longer of the two at the rates measured around the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from shoal.kernels import moe_matmul, native
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.kernels.native import binding, machine
from shoal.workers.engine.engine import Engine
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.weights import expert_bytes
from tests.bench.record import Row, paired
from tests.workers.engines import make_engine, random_tokens, sequence

HOST_GOAL_US = 1000.0
"""What Python may cost per step, at any of the batches."""


def rows(
    shape: str, model: Path, batches: Sequence[int], prompt: int, new: int, rounds: int, threads: int, notes: list[str]
) -> list[Row]:
    """Per batch: decode steps/s beside the roofline's, and the microseconds of a step that are not native code."""
    torch.set_num_threads(threads)
    native.set_threads(threads)
    engine = make_engine(model, kv_tokens=8192, batch_tokens=2048, caching=False)
    config = engine.model.config
    footprint = _dense_bytes(config) + config.num_layers * config.num_experts * expert_bytes(config)
    result = []
    for batch in batches:
        prompts = [random_tokens(prompt, config.vocab_size, seed=i) for i in range(batch)]
        _decode(engine, prompts, new)
        work = _work(engine, prompts, new)
        ours, limit, hosts, bound = [], [], [], ""
        for _ in range(rounds):
            read, fma = machine.read_rate(footprint), machine.fma_rate()
            steps, seconds = _decode(engine, prompts, new)
            ours.append(steps / seconds)
            limit.append(1 / max(work.bytes / read, work.operations / fma))
            bound = "reading" if work.bytes / read > work.operations / fma else "arithmetic"
            hosts.append(_host(engine, prompts, new))
        result.append(paired(f"{shape} roofline batch {batch}", "steps/s", ours, f"roofline: {bound}", limit, goal=0.6))
        host, wall = (sorted(values)[len(values) // 2] for values in zip(*hosts, strict=True))
        cost = round(host * 1e6, 1)
        case, unit = f"{shape} host cost batch {batch}", "us of CPU per step, at most the goal"
        result.append(Row(case, cost, unit, goal=HOST_GOAL_US, met=cost <= HOST_GOAL_US))
        notes.append(
            f"{shape} batch {batch}: a step reads {work.bytes / 1e6:.1f} MB ({work.experts:.1f} experts per layer) and "
            f"does {work.operations / 1e9:.2f} GFLOP; last measured {read / 1e9:.1f} GB/s, {fma / 1e9:.0f} GFLOP/s; "
            f"Python is {100 * host / wall:.0f} % of the calling thread's CPU time; "
            f"phases: {_phases(engine, prompts, new)}"
        )
    return result


def layer_rows(rounds: int, threads: int) -> list[Row]:
    """The experts of a 20b layer for one token: packed bytes of the four chosen experts per second beside plain
    reading, with exact and with 8-bit activations. Three layers' weights are walked in turn, so that they come from
    memory."""
    case = "one MXFP4 layer of 20b shape, batch 1"
    return [_layer_row(case, rounds, threads, False, 0.7), _layer_row(f"{case}, 8-bit", rounds, threads, True, None)]


def _layer_row(case: str, rounds: int, threads: int, int8: bool, goal: float | None) -> Row:
    native.set_threads(threads)
    layers, experts, hidden, chosen = 3, 32, 2880, 4
    g = torch.Generator().manual_seed(0)

    def weights(rows: int) -> moe_matmul.Weights:
        blocks = torch.randint(0, 256, (experts, rows, hidden // 32, 16), dtype=torch.uint8, generator=g)
        scales = torch.randint(117, 124, (experts, rows, hidden // 32), dtype=torch.uint8, generator=g)
        published = ExpertWeights(blocks, scales, torch.zeros(experts, rows, dtype=torch.bfloat16))
        return moe_matmul.prepare(published, int8=int8)

    pairs = [(weights(2 * hidden), weights(hidden)) for _ in range(layers)]
    x = torch.randn(1, hidden, generator=g)
    touched = chosen * 3 * hidden * hidden * 17 / 32
    total = layers * experts * 3 * hidden * hidden * 17 // 32
    ours, reading = [], []
    for _ in range(rounds):
        reading.append(machine.read_rate(total) / 1e9)
        picks = [torch.randperm(experts, generator=g)[:chosen].sort().values for _ in range(8 * layers)]
        offsets = [torch.bincount(p, minlength=experts).cumsum(0).int() for p in picks]
        offsets = [torch.cat([torch.zeros(1, dtype=torch.int32), o]) for o in offsets]
        rows_of = torch.zeros(chosen, dtype=torch.int32)
        start = time.perf_counter()
        for i, bounds in enumerate(offsets):
            up, down = pairs[i % layers]
            h = moe_matmul.gate_up(x, rows_of, bounds, up, limit=7.0, alpha=1.702)
            moe_matmul.down(h, bounds, down)
        ours.append(touched * len(picks) / (time.perf_counter() - start) / 1e9)
    return paired(case, "GB/s", ours, "plain reading", reading, goal)


Loads = list[list[int]]  # [layer][expert held] tokens so far


class _Work:
    """What one decode step of a batch must do, on average over a run."""

    def __init__(self, bytes: float, operations: float, experts: float) -> None:
        self.bytes, self.operations, self.experts = bytes, operations, experts


def _work(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> _Work:
    """Runs once, counting the experts that each step touches."""
    config = engine.model.config
    touched = steps = 0
    before = [_loads(engine)]
    for _ in _steps(engine, prompts, new, before):
        now = _loads(engine)
        touched += sum(sum(a != b for a, b in zip(x, y, strict=True)) for x, y in zip(before[-1], now, strict=True))
        before.append(now)
        steps += 1
    experts = touched / steps
    context = len(prompts[0]) + new / 2
    kv = 2 * 4 * config.kv_size * config.num_layers * context * len(prompts)
    dense = _dense_bytes(config)
    active = config.num_layers * config.experts_per_token * 3 * config.hidden_size * config.intermediate_size
    return _Work(
        bytes=dense + experts * expert_bytes(config) + kv,
        operations=2 * len(prompts) * (dense / 2 + active),
        experts=experts / config.num_layers,
    )


def _loads(engine: Engine) -> Loads:
    return [list(layer.loads.values()) for layer in engine.model.experts]


def _dense_bytes(config: ModelConfig) -> int:
    """bf16 weights that every step reads: attention, router and unembedding."""
    attention = config.hidden_size * (2 * config.q_size + 2 * config.kv_size)
    router = config.hidden_size * config.num_experts
    return 2 * (config.num_layers * (attention + router) + config.vocab_size * config.hidden_size)


def _steps(
    engine: Engine, prompts: Sequence[Sequence[int]], new: int, before: list[Loads] | None = None
) -> Iterator[None]:
    """Prefills, then yields after every decode step; `before` receives the loads at the start of decoding."""
    sequences = [sequence(p, name=str(i), max_tokens=new) for i, p in enumerate(prompts)]
    for each in sequences:
        engine.submit(each)
    while not all(each.num_generated for each in sequences):
        engine.step()
    if before is not None:
        before[:] = [_loads(engine)]
    while engine.has_work:
        engine.step()
        yield


def _decode(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> tuple[int, float]:
    """(decode steps, their seconds)"""
    ends = [time.perf_counter() for _ in _steps(engine, prompts, new)]
    return len(ends) - 1, ends[-1] - ends[0]


def _host(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
    """(outside native code, in all): seconds of this thread's own CPU time per decode step. Not wall time, which on a
    busy machine is mostly waiting; helpers' work is not in it."""
    with _native_clock() as spent:
        marks = [(time.thread_time(), spent[0]) for _ in _steps(engine, prompts, new)]
    steps = len(marks) - 1
    wall, inside = marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]
    return (wall - inside) / steps, wall / steps


@contextmanager
def _native_clock() -> Iterator[list[float]]:
    """Adds up the CPU seconds that this thread spends inside the native library."""
    call, spent = binding.call, [0.0]

    def timed(function: Callable[..., bytes | None], *arguments: Tensor | float | None) -> None:
        start = time.thread_time()
        call(function, *arguments)
        spent[0] += time.thread_time() - start

    binding.call = timed
    try:
        yield spent
    finally:
        binding.call = call


def _phases(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> str:
    before = dict(engine.model.stopwatch.seconds)
    start = time.perf_counter()
    for _ in _steps(engine, prompts, new):
        pass
    total = time.perf_counter() - start
    spent = {k: v - before.get(k, 0.0) for k, v in engine.model.stopwatch.seconds.items()}
    return ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in sorted(spent.items()))

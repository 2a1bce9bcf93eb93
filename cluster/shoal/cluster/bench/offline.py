"""The engine alone, in this process: how fast it prefills and decodes batches of given lengths."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.cluster.bench.record import Row
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.errors import ConfigError
from shoal.kernels import native
from shoal.kernels import target as targets
from shoal.workers.alone import EngineSizes, make_engine
from shoal.workers.checkpoint import CheckpointError, open_checkpoint
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.engine.engine import Engine
from shoal.workers.engine.sequence import Sequence as Seq
from shoal.workers.engine.sequence import SequenceKey, StopParams
from shoal.workers.errors import ConfigError as WorkerConfigError
from shoal.workers.model.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    model: str
    synthetic: bool
    device: str
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    output: int
    rounds: int
    step_tokens: int
    threads: int
    seed: int


@dataclass(frozen=True, slots=True)
class Timing:
    """One batch. `steps` are the seconds of each step in which every sequence decodes."""

    prefill: float
    steps: tuple[float, ...]


def open_source(options: Options, device: torch.device) -> WeightSource:
    """The checkpoint, or synthetic weights of a preset. Raises ConfigError."""
    if options.synthetic:
        if options.model not in PRESETS:
            raise ConfigError(f"--model: with --synthetic a preset ({', '.join(PRESETS)}), not {options.model!r}")
        return SyntheticWeights(PRESETS[options.model].config(), options.seed, device)
    try:
        return open_checkpoint(Path(options.model))
    except CheckpointError as error:
        raise ConfigError(f"--model: {error}") from error


def run(options: Options, say: Callable[[str], object]) -> tuple[list[Row], dict[str, object]]:
    """Rows per batch and prompt, and what it ran on. Raises ConfigError for what is wrong or does not fit."""
    try:
        target = targets.choose(options.device)
    except targets.BackendError as error:
        raise ConfigError(f"--device: {error}") from error
    torch.set_num_threads(options.threads)
    if target.backend == "native":
        native.set_threads(options.threads)
    source = open_source(options, target.device)
    longest, batch = max(options.prompts) + options.output, max(options.batches)
    if longest > source.config.max_context:
        raise ConfigError(f"--prompt, --output: {longest} tokens, the model holds {source.config.max_context}")
    blocks = -(-longest // 16) + 1
    sizes = EngineSizes(
        batch_size=batch, batch_tokens=max(options.step_tokens, batch), kv_tokens=16 * blocks * batch, caching=False,
        max_waiting=batch,
    )  # fmt: skip
    say(f"preparing on {target.device}")
    begin = time.perf_counter()
    try:
        engine = make_engine(source, target, sizes)
    except (CheckpointError, WorkerConfigError, torch.OutOfMemoryError) as error:
        raise ConfigError(f"the engine cannot be made: {error}") from error
    rows = [Row("start", round(time.perf_counter() - begin, 3), "s")]
    for prompt in options.prompts:
        for size in options.batches:
            say(f"prompt {prompt}, batch {size}")
            measure(engine, size, prompt, min(options.output, 3))  # warms
            timings = [measure(engine, size, prompt, options.output) for _ in range(options.rounds)]
            rows += rows_of(size, prompt, timings)
    gpu = torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else None
    return rows, {"gpu": gpu, "torch": torch.__version__, "kernels": target.kernel_class, "threads": options.threads}


def measure(engine: Engine, batch: int, prompt: int, output: int) -> Timing:
    """Prefill `batch` random prompts, then decode them together to the end."""
    chance = random.Random(f"{batch} {prompt}")
    vocabulary = range(engine.model.config.vocab_size)
    sequences = [
        Seq(SequenceKey(str(i)), 0, chance.choices(vocabulary, k=prompt), 0, i, GREEDY, StopParams(max_tokens=output))
        for i in range(batch)
    ]
    for sequence in sequences:
        engine.submit(sequence)
    begin = time.perf_counter()
    while any(not sequence.num_generated for sequence in sequences):
        engine.step()
    marks = [time.perf_counter()]
    # Early prompts decode while later ones prefill; what counts as decoding begins when all do.
    while len(engine.running) == batch:
        engine.step()
        marks.append(time.perf_counter())
    while engine.has_work:
        engine.step()
    steps = tuple(after - before for before, after in itertools.pairwise(marks))
    return Timing(marks[0] - begin, steps)


def rows_of(batch: int, prompt: int, timings: Sequence[Timing]) -> list[Row]:
    """Medians over the rounds."""
    case = f"batch {batch}, prompt {prompt}"
    prefill = statistics.median(timing.prefill for timing in timings)
    rows = [Row(f"{case}: prompts to first tokens", round(batch * prompt / prefill, 3), "tok/s")]
    steps = [step for timing in timings for step in timing.steps]
    if steps:
        middle = statistics.median(steps)
        rows.append(Row(f"{case}: decode", round(batch / middle, 3), "tok/s"))
        rows.append(Row(f"{case}: decode step", round(middle * 1e3, 4), "ms"))
    return rows

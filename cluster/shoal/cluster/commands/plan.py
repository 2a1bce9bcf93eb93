"""`shoal plan`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.errors import ConfigError
from shoal.cluster.plan.fleet import Layout, Wish, best, layouts
from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import GIB, Gpu, find_gpu, parse_size
from shoal.cluster.plan.roofline import EXCHANGE_SECONDS, prefill
from shoal.workers.checkpoint import CheckpointError
from shoal.workers.checkpoint.directory import find_files
from shoal.workers.model.config import ModelConfig

_CONTEXTS = (1024, 8192, 32768, 131072)
_BATCH_PER_GPU = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    model: str
    gpus: int
    gpu: str
    gpu_memory: str | None
    bandwidth: float | None
    tflops: float | None
    context: int
    batch: int | None
    step_tokens: int
    share: float
    spare_slots: int
    as_json: bool


def run(options: Options) -> None:
    """Print what fits and the bounds. Raises ConfigError for a wrong flag or a model that there is not."""
    config = _shape(options.model)
    gpu = _gpu(options)
    if not 1 <= options.context <= config.max_context:
        raise ConfigError(f"--context must be 1 to {config.max_context} for this model, not {options.context}")
    batch = options.batch or _BATCH_PER_GPU * options.gpus
    wish = Wish(options.gpus, batch, options.context, options.step_tokens, options.share, options.spare_slots)
    model = Footprint(config)
    contexts = tuple(sorted({min(context, config.max_context) for context in (*_CONTEXTS, options.context)}))
    ways = layouts(model, gpu, wish, contexts)
    if options.as_json:
        print(json.dumps(_record(options.model, gpu, wish, ways), indent=1))
    else:
        _print(options.model, model, gpu, wish, ways, contexts, Console())


def _shape(model: str) -> ModelConfig:
    name = model.removeprefix("gpt-oss-")
    if name in PRESETS and not Path(model).exists():
        return PRESETS[name].config()
    try:
        return find_files(Path(model)).config
    except CheckpointError as error:
        raise ConfigError(f"--model is no preset ({', '.join(PRESETS)}) and no checkpoint: {error}") from error


def _gpu(options: Options) -> Gpu:
    try:
        gpu = find_gpu(options.gpu)
        memory = gpu.memory if options.gpu_memory is None else parse_size(options.gpu_memory)
    except ValueError as error:
        raise ConfigError(f"--gpu, --gpu-memory: {error}") from error
    if options.bandwidth is None and options.tflops is None:
        return replace(gpu, memory=memory)
    bandwidth = gpu.bandwidth if options.bandwidth is None else options.bandwidth * 1e12
    flops = gpu.flops if options.tflops is None else options.tflops * 1e12
    return replace(gpu, memory=memory, bandwidth=bandwidth, flops=flops, source="as given")


def _print(
    name: str, model: Footprint, gpu: Gpu, wish: Wish, ways: list[Layout], contexts: tuple[int, ...], console: Console
) -> None:
    console.print(
        f"{name}: {_gb(model.checkpoint_bytes)} of weights, {_gb(model.experts_bytes)} of them experts; "
        f"KV {model.kv_token_bytes * model.full_layers / 1024:.0f} KiB per token and "
        f"{(model.kv_read(1 << 30) - (model.kv_token_bytes * model.full_layers << 30)) / 2**20:.1f} MiB per sequence",
        highlight=False, markup=False,
    )  # fmt: skip
    console.print(
        f"{wish.gpus} × {gpu.name}: {gpu.memory / GIB:.1f} GiB each, {wish.share:.0%} planned with; "
        f"{gpu.bandwidth / 1e12:g} TB/s, {gpu.flops / 1e12:g} TFLOP/s bf16 ({gpu.source})",
        highlight=False, markup=False,
    )  # fmt: skip
    heads = ("groups\n× ranks", "weights\nGB", "step\nGB", "KV\nGB", *(f"at\n{_tokens(c)}" for c in contexts),
             "\nbatch", "\ntok/s", "per\nuser", "mostly")  # fmt: skip
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, no_wrap=True, justify="left" if head in (heads[0], heads[-1]) else "right")
    for way in ways:
        held = way.memory
        room = f"{(held.kv_memory if held.kv is not None else -held.missing) / 1e9:.1f}"
        speed = ("", "") if way.step is None else (f"{way.tokens_per_second:,.0f}", f"{1 / way.step.seconds:,.0f}")
        table.add_row(
            f"{way.groups} × {way.ep_size}", f"{held.weights / 1e9:.1f}", f"{held.workspace / 1e9:.1f}", room,
            *(f"{way.holds[context]:,}" for context in contexts), f"{way.batch:,}", *speed, way.limit,
        )  # fmt: skip
    console.print(table)
    console.print(
        "weights, step (a step's own tensors) and KV: of one GPU. Below a context: sequences that run at once, on all "
        f"GPUs. batch: of {wish.batch:,} sequences of {_tokens(wish.context)} tokens, those that fit; tok/s is the "
        f"bound of decoding them, exchanges of {EXCHANGE_SECONDS * 1e6:.0f} us each way included, and what most of it "
        "is. A bound is arithmetic: nothing is faster, and everything real is slower.",
        highlight=False, markup=False,
    )  # fmt: skip
    seconds = prefill(model, gpu, wish.context)
    console.print(
        f"A prompt of {_tokens(wish.context)} tokens takes one GPU at least {seconds * 1e3:.1f} ms.",
        highlight=False, markup=False,
    )  # fmt: skip
    chosen = best(ways)
    if chosen is None:
        console.print(f"It does not fit: {_advice(ways)}", style="red", highlight=False, markup=False)
        return
    console.print("Settings of the fastest that holds most: " + ", ".join(_settings(chosen, wish)), markup=False)


def _settings(way: Layout, wish: Wish) -> list[str]:
    return [
        f"cluster.ep_size={way.ep_size}", f"cluster.groups={way.groups}",
        f"worker.max_batch_size={-(-way.batch // wish.gpus)}", f"worker.max_batch_tokens={wish.step_tokens}",
        f"worker.kv_memory={way.memory.kv_memory}",
    ]  # fmt: skip


def _advice(ways: list[Layout]) -> str:
    least = min(ways, key=lambda way: way.memory.weights)
    need = least.memory.weights + least.memory.workspace
    return f"with {least.ep_size} ranks each needs {_gb(need)} before any KV; take more or larger GPUs"


def _record(name: str, gpu: Gpu, wish: Wish, ways: list[Layout]) -> dict[str, Any]:
    return {
        "model": name, "gpu": gpu.name, "gpus": wish.gpus, "gpu_memory": gpu.memory, "context": wish.context,
        "wished_batch": wish.batch,
        "layouts": [
            {
                "ep_size": way.ep_size, "groups": way.groups, "fits": way.step is not None,
                "weight_bytes": way.memory.weights, "workspace_bytes": way.memory.workspace,
                "kv_memory": way.memory.kv_memory, "sequences": {str(c): n for c, n in way.holds.items()},
                "batch": way.batch, "bound_tokens_per_second": round(way.tokens_per_second, 1),
                "bound_step_seconds": None if way.step is None else way.step.seconds, "limit": way.limit,
            }
            for way in ways
        ],
    }  # fmt: skip


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)

"""transformers on the same device with the same weights, in turn with the engine."""

from __future__ import annotations

import importlib
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from shoal.cluster.checkpoint import side_files
from shoal.kernels import mxfp4
from shoal.workers.alone import make_engine
from shoal.workers.checkpoint.layout import hf_specs
from shoal.workers.checkpoint.synthetic import SyntheticWeights
from shoal.workers.engine.engine import Engine
from tests.gpu import seats
from tests.gpu.extent import Extent, sizes_for
from tests.gpu.telling import Teller

PEER = "transformers"


def state_of(source: SyntheticWeights, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All weights under transformers' names; experts decoded, as it holds them where no MXFP4 kernel is installed."""
    state = {}
    for spec in hf_specs(source.config):
        if spec.name.endswith("_scales"):
            continue
        value = source.tensor(spec.name)
        if spec.name.endswith("_blocks"):
            scales = source.tensor(spec.name.replace("_blocks", "_scales"))
            # An expert at a time: decoding a whole layer would need several times its memory.
            decoded = [mxfp4.dequantize(b, s, dtype).T.contiguous() for b, s in zip(value, scales, strict=True)]
            value = torch.stack(decoded)
        state[spec.name.removesuffix("_blocks")] = value.to(dtype)
    return state


def build(extent: Extent, dtype: torch.dtype) -> Any:
    """GptOssForCausalLM over the same synthetic weights, nothing of it read from a disk."""
    # Here, because other parts run where it is not installed; its own types do not know these calls.
    transformers: Any = importlib.import_module("transformers")
    table = {k: v for k, v in side_files.hf_config(extent.small).items() if k != "quantization_config"}
    config = transformers.GptOssConfig(**table)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = transformers.GptOssForCausalLM(config)
    model.load_state_dict(state_of(extent.source(extent.small), dtype), assign=True)
    inner = model.model
    inner.rotary_emb = type(inner.rotary_emb)(config).to(extent.device)  # its tables are no weights, and were on meta
    return model.eval()


def compare(extent: Extent, tell: Teller) -> None:
    """Prefill and decode at a few batches, each once per round, in turn; how many greedy tokens are the same."""
    target, prompt = extent.target(), extent.prompts[0]
    try:
        model = build(extent, target.dtype)
    except ImportError as error:
        tell.note(f"{PEER} is left out: {error}")
        return
    source = extent.source(extent.small)
    most = max(extent.peer_batches)
    sizes = sizes_for(source.config, extent, batch=most, kv_tokens=most * (prompt + 64))
    engine = make_engine(source, target, sizes)
    steps, rounds = (24, 3) if extent.on_gpu else (4, 2)
    for batch in extent.peer_batches:
        prompts = [seats.ids(prompt, engine, f"peer {i}") for i in range(batch)]
        ours, theirs = [], []
        for _ in range(rounds + 1):
            ours.append(_ours(engine, prompts, steps))
            theirs.append(_theirs(model, prompts, steps, extent))
        both = zip(ours[-1].tokens, theirs[-1].tokens, strict=True)
        agreed = sum(a == b for x, y in both for a, b in zip(x, y, strict=True))
        for what, tokens in (("prefill", batch * prompt), ("decode", batch * (steps - 1))):
            rates = [[tokens / getattr(run, what) for run in runs[1:]] for runs in (ours, theirs)]
            pairs = list(zip(*rates, strict=True))
            ratios = sorted(a / b for a, b in pairs)
            tell.row(
                f"{extent.small.name} {what}, batch {batch}, prompt {prompt}",
                statistics.median(a for a, _ in pairs), "tok/s", peer=f"{PEER}, experts in {target.dtype}",
                bound=statistics.median(b for _, b in pairs), spread=[round(ratios[0], 3), round(ratios[-1], 3)],
                same_tokens=agreed, of=batch * steps,
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of the prompts, seconds of the further tokens, and all that were generated."""

    prefill: float
    decode: float
    tokens: list[list[int]]


def _ours(engine: Engine, prompts: list[list[int]], steps: int) -> Run:
    """One batch, greedy."""
    sequences = [seats.fresh(engine, f"peer {i}", len(p), steps) for i, p in enumerate(prompts)]
    assert prompts == [sequence.tokens for sequence in sequences], "both are asked the same"
    for sequence in sequences:
        engine.submit(sequence)
    begin = time.perf_counter()
    while not all(sequence.num_generated for sequence in sequences):
        engine.step()
    middle = time.perf_counter()
    while engine.has_work:
        engine.step()
    return Run(middle - begin, time.perf_counter() - middle, [s.tokens[s.given_length :] for s in sequences])


@torch.inference_mode()
def _theirs(model: Any, prompts: list[list[int]], steps: int, extent: Extent) -> Run:
    """The same with its own cache, greedy, without `generate`'s own bookkeeping."""
    ids, tokens = torch.tensor(prompts, device=extent.device), []
    begin = time.perf_counter()
    answer = model(ids, use_cache=True, logits_to_keep=1)
    tokens.append(answer.logits[:, -1].argmax(-1))
    tokens[-1].tolist()  # waits for the device
    middle = time.perf_counter()
    for _ in range(steps - 1):
        answer = model(tokens[-1][:, None], past_key_values=answer.past_key_values, use_cache=True)
        tokens.append(answer.logits[:, -1].argmax(-1))
    generated = torch.stack(tokens, 1).tolist()
    return Run(middle - begin, time.perf_counter() - middle, generated)

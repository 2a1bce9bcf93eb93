"""The bound of one step: every byte it needs read once, every multiplication done, whichever takes longer.

In a decode step each GPU reads its dense weights, the unembedding, the experts that some token chose and the keys and
values of its sequences. Routing is taken as uniform; of several ranks the busiest counts. Nobody reaches a bound: what
is of use is how near a measured number comes.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass

from shoal.cluster.plan.footprint import Footprint
from shoal.cluster.plan.gpu import Gpu

EXCHANGE_SECONDS = 25e-6
"""What published all-to-alls of a few tokens take at best, each way."""

_ALL_HIT = 1e-3  # so few experts missing on average that all are hit
_TOKENS_SIMULATED = 60_000  # over all trials of one case


@dataclass(frozen=True, slots=True)
class Step:
    """Bounds of one decode step of a group. Bytes are those of the busiest rank."""

    experts_hit: float
    expert_bytes: float
    dense_bytes: float
    unembedding_bytes: float
    kv_bytes: float
    memory_seconds: float
    compute_seconds: float
    link_seconds: float
    seconds: float
    tokens_per_second: float


def experts_hit(experts: int, top_k: int, tokens: int) -> float:
    """Distinct experts of one layer that `tokens` tokens choose, on average."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


@functools.cache
def busiest_hit(experts: int, top_k: int, tokens: int, ranks: int) -> float:
    """The same on the rank that has most of them, each rank holding an equal share; from a seeded simulation."""
    if ranks == 1:
        return experts_hit(experts, top_k, tokens)
    share = experts / ranks
    if share * (1 - top_k / experts) ** tokens < _ALL_HIT:
        return share
    chance, trials = random.Random(f"{experts} {top_k} {tokens} {ranks}"), max(20, _TOKENS_SIMULATED // (tokens + 20))
    total, everybody = 0, range(experts)
    for _ in range(trials):
        chosen = {expert for _ in range(tokens) for expert in chance.sample(everybody, top_k)}
        held = [0] * ranks
        for expert in chosen:
            held[expert * ranks // experts] += 1
        total += max(held)
    return total / trials


def other_ranks(experts: int, top_k: int, ranks: int) -> float:
    """Ranks besides its own that a token must visit in a layer, on average."""
    share = experts // ranks
    missed = math.comb(experts - share, top_k) / math.comb(experts, top_k)
    return (ranks - 1) * (1 - missed)


def decode(model: Footprint, gpu: Gpu, batch: int, context: int, ranks: int = 1, exchange_seconds: float = 0.0) -> Step:
    """One step of `batch` sequences of `context` tokens over a group of `ranks`."""
    c = model.config
    mine = math.ceil(batch / ranks)
    hit = busiest_hit(c.num_experts, c.experts_per_token, batch, ranks)
    experts = c.num_layers * hit * model.expert_bytes
    kv = mine * model.kv_read(context)
    memory = (experts + model.dense_bytes + model.unembedding_bytes + kv) / gpu.bandwidth
    compute = mine * model.decode_flops(context) / gpu.flops
    link = wait = 0.0
    if ranks > 1:
        row = c.hidden_size * 2
        link = 2 * c.num_layers * mine * other_ranks(c.num_experts, c.experts_per_token, ranks) * row / gpu.link
        wait = 2 * c.num_layers * exchange_seconds
    seconds = max(memory, compute, link) + wait
    return Step(
        hit, experts, model.dense_bytes, model.unembedding_bytes, kv, memory, compute, link, seconds, batch / seconds
    )


def prefill(model: Footprint, gpu: Gpu, prompt: int) -> float:
    """Seconds for one prompt on one GPU: its arithmetic, or reading every weight that it touches once."""
    c = model.config
    hit = experts_hit(c.num_experts, c.experts_per_token, prompt)
    reading = (model.dense_bytes + c.num_layers * hit * model.expert_bytes) / gpu.bandwidth
    return max(prompt * model.prefill_flops(prompt) / gpu.flops, reading)


def saturated(model: Footprint, gpu: Gpu, batch: int, prompt: int, output: int) -> float:
    """Output tokens per second of one GPU that always runs `batch` requests of this length, their prompts included."""
    decoding = 1 / decode(model, gpu, batch, prompt + output // 2).tokens_per_second
    prefilling = model.prefill_flops(prompt) / gpu.flops * prompt / output
    return 1 / (decoding + prefilling)

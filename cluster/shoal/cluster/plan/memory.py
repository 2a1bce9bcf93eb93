"""What one rank's memory holds: weights, a step's tensors, and KV with what is left."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.cluster.plan.footprint import Footprint
from shoal.workers.errors import ConfigError
from shoal.workers.kv.memory import KvPlan, plan_kv

BLOCK = 16
"""`worker.block_size`."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank. `kv` is None when the cache has no room; `missing` then says how much is."""

    budget: int
    weights: int
    workspace: int
    kv: KvPlan | None
    missing: int

    @property
    def kv_memory(self) -> int:
        """What `worker.kv_memory` may be set to."""
        return max(0, self.budget - self.weights - self.workspace)


def weight_bytes(model: Footprint, ranks: int, spare_slots: int = 0) -> int:
    """Weights of the rank that holds most: everything dense, its share of every layer's experts, spare slots."""
    experts = -(-model.config.num_experts // ranks) + spare_slots
    dense = model.dense_bytes + model.embedding_bytes + model.unembedding_bytes + model.widened_bytes
    return dense + model.config.num_layers * experts * model.expert_bytes


def workspace_bytes(model: Footprint, batch: int, step_tokens: int, ranks: int) -> int:
    """Tensors of one step where most are alive at once, and the tables of the rotary embedding.

    The widest place is a layer's experts: the residual and its norm, a row per (token, expert) before and after the
    second projection, here and, of a group, what the others sent: as many again when load is even. Logits are fp32,
    and once more while they are sampled.
    """
    c = model.config
    attention = c.q_size + 2 * c.kv_size + c.q_size
    rows = c.experts_per_token * (c.intermediate_size + c.hidden_size) * (1 if ranks == 1 else 2)
    per_token = 2 * (3 * c.hidden_size + max(attention, rows)) + 4 * c.num_experts
    logits = 2 * 4 * batch * c.vocab_size
    rope = 4 * c.max_context * c.head_dim
    return step_tokens * per_token + logits + rope


def rank_memory(
    model: Footprint, memory: int, ranks: int, batch: int, *, step_tokens: int = 8192, share: float = 0.9,
    spare_slots: int = 0,
) -> RankMemory:  # fmt: skip
    """One rank of `ranks` on a GPU of `memory` bytes, of which `share` is planned with: the rest is the driver's, the
    compiled kernels', recorded graphs' and what allocation cannot use. `batch` sequences run at once on the rank."""
    budget = int(memory * share)
    weights = weight_bytes(model, ranks, spare_slots)
    workspace = workspace_bytes(model, batch, step_tokens, ranks)
    left = budget - weights - workspace
    if left <= 0:
        return RankMemory(budget, weights, workspace, None, -left)
    try:
        kv = plan_kv(
            model.config, block_size=BLOCK, batch_size=batch, batch_tokens=step_tokens, itemsize=model.kv_itemsize,
            memory=left,
        )  # fmt: skip
    except ConfigError:
        return RankMemory(budget, weights, workspace, None, 0)
    return RankMemory(budget, weights, workspace, kv, 0)


def sequences(model: Footprint, kv: KvPlan | None, context: int) -> int:
    """How many sequences of `context` tokens the cache holds at once."""
    if kv is None:
        return 0
    window = max((w for w in model.config.layer_windows if w is not None), default=1)
    sliding = min(-(-context // kv.block_size), -(-window // kv.block_size) + 2)
    return min(kv.num_full // -(-context // kv.block_size), kv.num_sliding // sliding)


def largest_batch(
    model: Footprint, memory: int, ranks: int, context: int, *, step_tokens: int = 8192, share: float = 0.9,
    spare_slots: int = 0, most: int = 4096,
) -> int:  # fmt: skip
    """The most sequences of `context` tokens that one rank can run at once, 0 when it has no room for one.

    A larger batch needs more room for logits and windows, so the answer is where what fits meets what is run.
    """

    def fits(batch: int) -> bool:
        held = rank_memory(
            model, memory, ranks, batch, step_tokens=max(step_tokens, batch), share=share, spare_slots=spare_slots
        )
        return sequences(model, held.kv, context) >= batch

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

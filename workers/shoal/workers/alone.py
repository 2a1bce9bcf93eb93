"""An engine in this process, without a server, a controller or Ray: for measuring and for tests."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.kernels.target import Target
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.engine.engine import Engine, EngineLimits
from shoal.workers.engine.scheduler import Limits
from shoal.workers.experts.exchange import Exchange, LocalExchange
from shoal.workers.experts.placement import Placement
from shoal.workers.kv.manager import KvManager
from shoal.workers.kv.memory import plan_kv
from shoal.workers.model.kv_cache import allocate
from shoal.workers.model.model import Model
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.weights import load_dense, load_experts


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """What one engine may use; the fields are those of `WorkerConfig`."""

    batch_size: int = 16
    batch_tokens: int = 256
    block_size: int = 16
    kv_tokens: int = 2048
    kv_memory: int = 0
    caching: bool = True
    speculative_tokens: int = 0
    max_waiting: int = 1024
    max_context: int = 0


def make_engine(
    source: WeightSource,
    target: Target,
    sizes: EngineSizes,
    exchange: Exchange | None = None,
    placement: Placement | None = None,
) -> Engine:
    """Read the weights and allocate the KV cache; by default for all experts, alone in a group.

    Text is nothing to it: stop texts see each token as one byte. Raises CheckpointError, ConfigError.
    """
    config = source.config
    exchange = exchange or LocalExchange()
    plan = plan_kv(
        config, block_size=sizes.block_size, batch_size=sizes.batch_size, batch_tokens=sizes.batch_tokens,
        itemsize=target.dtype.itemsize, tokens=sizes.kv_tokens, memory=sizes.kv_memory,
    )  # fmt: skip
    max_context = min(config.max_context, plan.tokens, sizes.max_context or plan.tokens)
    kv = allocate(config, plan, target.dtype, target.device)
    model = Model(config, target, load_dense(source, target.device), kv, max_context)
    layers = []
    for layer in range(config.num_layers):
        ids = placement.experts_of(layer, exchange.rank) if placement is not None else range(config.num_experts)
        experts = load_experts(source, layer, ids, target.device, int8=target.int8)
        layers.append(ExpertLayer(config, layer, experts, exchange))
    model.experts = tuple(layers)
    window = max((w for w in config.layer_windows if w is not None), default=1)
    manager = KvManager(plan.num_full, plan.num_sliding, plan.block_size, window, caching=sizes.caching)
    batch = Limits(sizes.batch_size, sizes.batch_tokens, sizes.block_size)
    limits = EngineLimits(batch, sizes.max_waiting, max_context, sizes.speculative_tokens)
    return Engine(model, exchange, manager, limits, tuple(bytes([i % 256]) for i in range(config.vocab_size)))

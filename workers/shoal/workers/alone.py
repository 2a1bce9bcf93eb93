"""An engine in this process, without a server, a controller or Ray: for measuring and for tests."""

from __future__ import annotations

from shoal.kernels.target import Target
from shoal.workers.assemble import EngineSizes, assemble
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.engine.engine import Engine
from shoal.workers.experts.exchange import Exchange
from shoal.workers.experts.placement import Placement
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import load_experts

__all__ = ["EngineSizes", "make_engine"]


def make_engine(
    source: WeightSource,
    target: Target,
    sizes: EngineSizes,
    exchange: Exchange | None = None,
    placement: Placement | None = None,
    watch: Stopwatch | None = None,
) -> Engine:
    """Read the weights and allocate the KV cache; by default for all experts, alone in a group.

    Text is nothing to it: stop texts see each token as one byte. `watch` learns what each phase took. Raises
    CheckpointError, ConfigError.
    """
    config, watch = source.config, watch or Stopwatch()
    engine = assemble(source, target, sizes, tuple(bytes([i % 256]) for i in range(config.vocab_size)), watch)
    engine.exchange = exchange or engine.exchange
    layers = []
    for layer in range(config.num_layers):
        ids = range(config.num_experts)
        held = placement.experts_of(layer, engine.exchange.rank) if placement is not None else ids
        experts = load_experts(source, layer, held, target.device, int8=target.int8, watch=watch)
        layers.append(ExpertLayer(config, layer, experts, engine.exchange))
    engine.model.experts = tuple(layers)
    if engine.decoder is not None and target.device.type == "cuda":
        with watch.phase("graphs"):
            engine.decoder.record_all()
    return engine

"""From weights and sizes to an engine that lacks only experts and others to exchange with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.kernels.target import Target
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.engine.engine import Engine, EngineLimits
from shoal.workers.engine.scheduler import Limits
from shoal.workers.experts.exchange import LocalExchange
from shoal.workers.kv.manager import KvManager
from shoal.workers.kv.memory import plan_kv
from shoal.workers.model.decoder import decoder_for
from shoal.workers.model.kv_cache import allocate
from shoal.workers.model.model import Model
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import load_dense

if TYPE_CHECKING:  # an engine needs none of what settings come with
    from shoal.workers.config import WorkerConfig


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
    preferred_step_sizes: tuple[int, ...] = ()
    overlap: bool = True
    """Launch a step before the last one's tokens are known, where the device samples."""
    graphs: bool | None = None
    """Replay recorded decode steps; None: on a GPU."""
    graph_memory: int = 2 << 30

    @classmethod
    def of(cls, config: WorkerConfig) -> EngineSizes:
        """Those of a worker."""
        return cls(
            batch_size=config.max_batch_size,
            batch_tokens=config.max_batch_tokens,
            block_size=config.block_size,
            kv_tokens=config.kv_tokens,
            kv_memory=config.kv_memory,
            caching=config.prefix_cache,
            speculative_tokens=config.speculative_tokens,
            max_waiting=config.max_waiting,
            max_context=config.max_context,
            preferred_step_sizes=config.preferred_step_sizes,
            overlap=config.overlap,
            graphs={"auto": None, "on": True, "off": False}[config.graphs],
            graph_memory=config.graph_memory,
        )


def assemble(
    source: WeightSource, target: Target, sizes: EngineSizes, token_bytes: Sequence[bytes], watch: Stopwatch
) -> Engine:
    """Allocate the KV cache, read the dense weights, and put together what runs over them; `watch` learns what that
    took. Raises CheckpointError, ConfigError."""
    config = source.config
    plan = plan_kv(
        config, block_size=sizes.block_size, batch_size=sizes.batch_size, batch_tokens=sizes.batch_tokens,
        itemsize=target.dtype.itemsize, tokens=sizes.kv_tokens, memory=sizes.kv_memory,
    )  # fmt: skip
    max_context = min(config.max_context, plan.tokens, sizes.max_context or plan.tokens)
    replays = target.device.type == "cuda" if sizes.graphs is None else sizes.graphs
    with watch.phase("kv"):
        kv = allocate(config, plan, target.dtype, target.device, scratch=replays)
    model = Model(config, target, load_dense(source, target.device, watch), kv, max_context)
    window = max((w for w in config.layer_windows if w is not None), default=1)
    manager = KvManager(plan.num_full, plan.num_sliding, plan.block_size, window, caching=sizes.caching)
    batch = Limits(sizes.batch_size, sizes.batch_tokens, sizes.block_size, sizes.preferred_step_sizes)
    limits = EngineLimits(batch, sizes.max_waiting, max_context, sizes.speculative_tokens, sizes.overlap)
    decoder = decoder_for(model, sizes.batch_size, max_context, sizes.graph_memory)
    return Engine(model, LocalExchange(), manager, limits, token_bytes, decoder)

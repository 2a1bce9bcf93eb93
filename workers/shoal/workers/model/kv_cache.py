"""The paged KV cache of one rank: fixed blocks, one pair of tensors per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.workers.kv.manager import CopyBlock
from shoal.workers.kv.memory import KvPlan
from shoal.workers.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KvCache:
    """`keys[layer]` and `values[layer]` are [blocks, block_size, num_kv_heads, head_dim] in the activation dtype.

    Full-attention layers share one numbering of blocks, sliding layers another. Token i of a sequence lives in block
    `table[i // block_size]` at row `i % block_size`: its *slot* is `block * block_size + row`.
    """

    plan: KvPlan
    sliding: tuple[bool, ...]  # per layer
    scratch: bool  # whether each tensor ends in a block of nobody, where rows that only fill a step up write
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def copy(self, copies: list[CopyBlock]) -> None:
        """Copy whole blocks, in the layers of their pool."""
        for copy in copies:
            for layer, sliding in enumerate(self.sliding):
                if sliding == copy.sliding:
                    self.keys[layer][copy.target].copy_(self.keys[layer][copy.source])
                    self.values[layer][copy.target].copy_(self.values[layer][copy.source])


def allocate(
    config: ModelConfig, plan: KvPlan, dtype: torch.dtype, device: torch.device, *, scratch: bool = False
) -> KvCache:
    """Allocate once, at the start; the cache never grows. With `scratch` there is one block more, in no pool."""
    sliding = tuple(window is not None for window in config.layer_windows)

    def tensor(layer: int) -> Tensor:
        blocks = plan.num_sliding if sliding[layer] else plan.num_full
        shape = (blocks + scratch, plan.block_size, config.num_kv_heads, config.head_dim)
        return torch.zeros(shape, dtype=dtype, device=device)

    layers = range(config.num_layers)
    return KvCache(plan, sliding, scratch, tuple(map(tensor, layers)), tuple(map(tensor, layers)))

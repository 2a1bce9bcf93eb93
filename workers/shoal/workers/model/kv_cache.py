"""The paged KV cache of one rank: fixed blocks, one pair of tensors per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.workers.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KvCache:
    """`keys[layer]` and `values[layer]` are [num_blocks, block_size, num_kv_heads, head_dim] in the activation dtype.

    Token i of a sequence lives in block `table[i // block_size]` at row `i % block_size`: its *slot* is
    `block * block_size + row`.
    """

    block_size: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_blocks(self) -> int:
        return self.keys[0].shape[0]


def allocate(
    config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KvCache:
    """Allocate once, at the start; the cache never grows."""
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    keys = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers))
    values = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers))
    return KvCache(block_size, keys, values)

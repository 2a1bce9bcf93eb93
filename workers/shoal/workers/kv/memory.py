"""How many KV blocks fit: a pure function of the model's shape and the memory to be had."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.workers.errors import ConfigError
from shoal.workers.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Sizes of both pools, in blocks, and what they cost, in bytes."""

    block_size: int
    num_full: int
    num_sliding: int
    bytes_full: int
    bytes_sliding: int

    @property
    def tokens(self) -> int:
        """Tokens that the full-attention layers hold: the bound of the longest sequence."""
        return self.num_full * self.block_size

    @property
    def bytes_total(self) -> int:
        return self.bytes_full + self.bytes_sliding


def plan_kv(
    config: ModelConfig, *, block_size: int, batch_size: int, batch_tokens: int, itemsize: int,
    tokens: int = 0, memory: int = 0,
) -> KvPlan:  # fmt: skip
    """Size the pools for `tokens` tokens of full-attention KV, or for `memory` bytes in all.

    The sliding pool holds, for every sequence of a full batch, its window and the block being written; the step's
    largest chunk; and as many tails again for the prefix cache. It is never larger than the full pool needs to be.
    Raises ConfigError naming the key when the memory cannot hold a useful cache.
    """
    windows = [w for w in config.layer_windows if w is not None]
    per_token = 2 * config.kv_size * itemsize  # keys and values of one layer
    block_full = per_token * block_size * (len(config.layer_windows) - len(windows))
    block_sliding = per_token * block_size * len(windows)
    per_sequence = -(-max(windows, default=1) // block_size) + 2
    wanted = 2 * batch_size * per_sequence + -(-batch_tokens // block_size)
    if memory:
        num_full = (memory - wanted * block_sliding) // block_full if block_full else wanted
        if num_full < wanted:  # little memory: both pools alike
            num_full = (memory - per_sequence * block_sliding) // (block_full + block_sliding)
        if num_full < per_sequence:
            raise ConfigError(
                f"worker.kv_memory: {memory} bytes hold {max(0, num_full)} blocks of "
                f"{block_full + block_sliding} bytes, at least {per_sequence} are needed"
            )
    else:
        num_full = tokens // block_size
    least = per_sequence + -(-batch_tokens // block_size)  # one sequence in the middle of the largest chunk
    num_sliding = max(least, min(wanted, num_full + per_sequence))
    return KvPlan(block_size, num_full, num_sliding, num_full * block_full, num_sliding * block_sliding)

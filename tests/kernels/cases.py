"""Seeded random inputs for kernel tests, on any device and in any activation dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.attention import AttentionBatch
from shoal.kernels.mxfp4 import ExpertWeights


@dataclass(frozen=True, slots=True)
class Cases:
    """A source of inputs. Drawn on the CPU, so that every device sees the same numbers."""

    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._generator()).to(self.device, dtype or self.dtype)

    def experts(self, experts: int, rows: int, width: int) -> ExpertWeights:
        """Every code, scales 2^-8 .. 2^-3: outputs of about 1 for inputs of about 1 and widths of hundreds."""
        g = self._generator()
        blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), dtype=torch.uint8, generator=g)
        scales = torch.randint(119, 125, (experts, rows, width // 32), dtype=torch.uint8, generator=g)
        bias = torch.randn(experts, rows, generator=g).bfloat16()
        return ExpertWeights(blocks.to(self.device), scales.to(self.device), bias.to(self.device))

    def assignment(self, tokens: int, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(rows i32 [R], offsets i32 [E+1]): expert e reads counts[e] random tokens."""
        rows = torch.randint(0, tokens, (sum(counts),), dtype=torch.int32, generator=self._generator())
        offsets = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
        return rows.to(self.device), offsets.to(self.device)

    def sequences(
        self, spans: Sequence[tuple[int, int]], *, kv_heads: int = 2, head_dim: int = 64, block_size: int = 16
    ) -> tuple[Tensor, Tensor, AttentionBatch]:
        """(k_cache, v_cache, batch) for sequences of (new queries, keys in all), their blocks shuffled.

        Every slot that belongs to no key is NaN: reading one shows.
        """
        g = self._generator()
        blocks = [-(-context // block_size) for _, context in spans]
        tables = torch.zeros(len(spans), max(blocks, default=0) + 1, dtype=torch.int32)
        shuffled = torch.randperm(sum(blocks) + 1, generator=g)
        shape = (sum(blocks) + 1, block_size, kv_heads, head_dim)
        k_cache, v_cache = (torch.full(shape, torch.nan) for _ in range(2))
        taken = 0
        for s, ((_, context), count) in enumerate(zip(spans, blocks, strict=True)):
            mine = shuffled[taken : taken + count]
            tables[s, :count] = mine.to(torch.int32)
            taken += count
            for position in range(context):
                block, offset = int(mine[position // block_size]), position % block_size
                k_cache[block, offset] = torch.randn(kv_heads, head_dim, generator=g)
                v_cache[block, offset] = torch.randn(kv_heads, head_dim, generator=g)
        cu_q = torch.tensor([0, *(new for new, _ in spans)]).cumsum(0).to(torch.int32)
        contexts = torch.tensor([context for _, context in spans], dtype=torch.int32)
        batch = AttentionBatch(cu_q.to(self.device), contexts.to(self.device), tables.to(self.device))
        return k_cache.to(self.device, self.dtype), v_cache.to(self.device, self.dtype), batch

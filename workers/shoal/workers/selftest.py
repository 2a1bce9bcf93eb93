"""Does this group compute what it must? Asked before it serves an epoch, and now and then while it does.

Every rank computes the logits of one fixed prompt, through the same layers, experts and exchange as any request. Ranks
of one epoch must agree bit for bit, and with every epoch before; and with the golden logits, where there are any, as
far as the number format goes.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from shoal.kernels.attention import AttentionBatch
from shoal.workers.errors import UnfitError
from shoal.workers.experts.exchange import Exchange, Wish
from shoal.workers.kv.memory import KvPlan
from shoal.workers.model.golden import Golden, difference
from shoal.workers.model.kv_cache import allocate
from shoal.workers.model.model import KvPlace, Model, ModelInput

TOKENS = 48
"""Of the prompt, where there is no golden one: each of 8 experts of a layer is then met about 24 times."""

_BLOCK = 16


class SelfTest:
    """Belongs to one model, and to the thread that steps it."""

    def __init__(self, model: Model, golden: Golden | None) -> None:
        self._model = model
        self._golden = golden
        self._digest: int | None = None
        vocabulary = model.config.vocab_size
        if golden is not None:
            tokens = golden.tokens
        else:
            tokens = np.random.Generator(np.random.Philox(key=7)).integers(0, vocabulary, TOKENS).tolist()
        device, count = model.target.device, len(tokens)
        blocks = -(-count // _BLOCK)
        self._kv = allocate(model.config, KvPlan(_BLOCK, blocks, blocks, 0, 0), model.target.dtype, device)

        def ints(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        positions = torch.arange(count, dtype=torch.int64, device=device)
        table = torch.arange(blocks, dtype=torch.int32, device=device)[None]
        place = KvPlace(positions, AttentionBatch(ints([0, count]), ints([count]), table))
        ids = torch.tensor(tokens, dtype=torch.int64, device=device)
        self._input = ModelInput(ids, positions, place, place, positions)

    def run(self, exchange: Exchange, step: int) -> None:
        """A collective: all ranks call it together, between two steps. Raises UnfitError, ExchangeError."""
        exchange.agree(step, self._input.ids.numel(), Wish.NONE)
        logits = self._model.forward(self._input, self._kv).cpu()
        digest = int.from_bytes(hashlib.blake2b(logits.numpy().tobytes(), digest_size=7).digest(), "big")
        problem = self._problem(logits, digest)
        words = exchange.compare([digest, int(bool(problem))])
        if problem:
            raise UnfitError(problem)
        for rank, (other, failed) in enumerate(words):
            if failed:
                raise UnfitError(f"rank {rank} failed the self-test")
            if other != digest:
                raise UnfitError(f"ranks {exchange.rank} and {rank} compute different logits of the same tokens")
        self._digest = digest

    def _problem(self, logits: torch.Tensor, digest: int) -> str:
        """What is wrong with this rank's own logits, empty when nothing is."""
        if self._digest is not None and self._digest != digest:
            return "the logits of the self-test are not those of earlier epochs"
        if not bool(torch.isfinite(logits).all()):
            return "the logits of the self-test are not finite"
        if self._golden is None:
            return ""
        target = self._model.target
        return difference(self._golden, logits, torch.int8 if target.int8 else target.dtype)

"""Does this group compute what it must? Asked before it serves an epoch, and now and then while it does.

Every rank computes the logits of one fixed prompt, through the same layers, experts and exchange as any request. Ranks
of one epoch must agree bit for bit, and with every epoch before; and with the golden logits, where there are any, as
far as the number format goes.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels import sampling
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
_CHOICES = 4
"""Rows of logits that a device's sampler is tried with."""


class SelfTest:
    """Belongs to one model, and to the thread that steps it."""

    def __init__(self, model: Model, golden: Golden | None, checkpoint: str = "DIR") -> None:
        """`checkpoint` is only named, where its bytes may be at fault."""
        self._model, self._checkpoint = model, checkpoint
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
        on_device = self._model.forward(self._input, self._kv)
        logits = on_device.cpu()
        digest = int.from_bytes(hashlib.blake2b(logits.numpy().tobytes(), digest_size=7).digest(), "big")
        problem = self._problem(logits, digest)
        if not problem and self._model.target.sampler == "device":
            problem = sampler_problem(on_device[-_CHOICES:], logits[-_CHOICES:].numpy())
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
        problem = difference(self._golden, logits, torch.int8 if target.int8 else target.dtype)
        return problem and f"{problem}; `shoal checkpoint verify {self._checkpoint}` says whether its files are damaged"


def sampler_problem(logits: Tensor, known: NDArray[np.float32]) -> str:
    """What the device's sampler does wrong where there is one right answer, empty when nothing. `known` are the logits
    on the host: they tell the likeliest token, however it is asked for, and the next one where that is barred."""
    best = known.argmax(axis=1)
    barred = known.copy()
    barred[np.arange(len(best)), best] = -np.inf
    may = np.zeros((len(best), -(-known.shape[1] // 32) * 32), dtype=np.bool_)
    may[:, : known.shape[1]] = barred > -np.inf
    masks = torch.from_numpy(np.packbits(may, axis=1, bitorder="little").view(np.int32)).to(logits.device)
    ways = {
        "greedily": (best, sampling.settings(0.0, 0.0)),
        "as the first of one": (best, sampling.settings(1.0, 0.5, top_k=1)),
        "as the least share": (best, sampling.settings(1.0, 0.9, top_p=1e-9)),
        "behind a mask": (barred.argmax(axis=1), sampling.settings(0.0, 0.0)),
    }
    for way, (expected, how) in ways.items():
        masked = way == "behind a mask"
        rows = np.tile(np.array(how, dtype=np.int64), (len(best), 1))
        rows[:, sampling.MASK_ROW] = np.arange(len(best)) if masked else -1
        chosen = sampling.sample(
            logits, torch.from_numpy(rows).to(logits.device), masks if masked else None, top_k=True, top_p=True
        )
        if not np.array_equal(expected, chosen.ids.cpu().numpy()):
            return f"the device's sampler does not choose the likeliest token {way}"
    return ""

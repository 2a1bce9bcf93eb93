"""Choosing tokens where the logits are: the largest, or a draw from what temperature, top-k, top-p and min-p leave.

    weight = floor(2^44 * exp((logit - max) / temperature))
    kept   = weights >= min_p of the largest; of these the top_k largest; of these the fewest whose share reaches top_p
    token  = the first, in order of ids, at which the sum of kept weights exceeds draw * (the sum of all)

Weights are whole numbers, so sums are exact and no order of adding matters: any number of programs gives the same
token, and the twin gives it too. Of equal logits the lower id counts as the larger. Nothing of the vocabulary's size is
written to memory, and only the chosen tokens leave the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoal.kernels import exact
from shoal.kernels.target import backend_for

UNIT = 2.0**44
"""The weight of the likeliest token. 2^18 tokens of it would still be a whole number of 63 bits."""
FAINT = -40.0
"""The exponent that lower ones are taken for: e^-40 of the unit is far below 1, so it weighs nothing."""
_DRAW = 2.0**53
INVERSE_TEMPERATURE, DRAW, TOP_K, TOP_P, MIN_WEIGHT, MASK_ROW, WIDTH = range(7)
"""What a row of settings holds; WIDTH is how many."""


class Chosen(NamedTuple):
    """One choice per row; all but `ids` is empty unless log-probabilities were asked for."""

    ids: Tensor  # i64 [R]
    logits: Tensor  # f32 [R], of the chosen
    maxima: Tensor  # f32 [R], the largest that the mask leaves
    totals: Tensor  # i64 [R], sum of the weights at temperature 1 of all that the mask leaves
    top_ids: Tensor  # i32 [R,n], likeliest first; -1 where the mask leaves fewer
    top_logits: Tensor  # f32 [R,n]


def settings(
    temperature: float, draw: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, mask_row: int = -1
) -> tuple[int, ...]:
    """How one row is chosen from, as a row of the `settings` of `sample`.

    Temperature 0 takes the largest. `draw` is a multiple of 2^-53 in [0, 1). `mask_row` is the row of `masks` that says
    which tokens may be chosen, -1 for all.
    """
    greedy = temperature == 0.0
    inverse = np.float32(1.0 if greedy else min(1.0 / temperature, 1e30))
    return (
        int(inverse.view(np.int32)),
        -1 if greedy else int(draw * _DRAW),
        top_k,
        int(top_p * _DRAW),
        max(1, math.ceil(min_p * UNIT)),
        mask_row,
    )


def sample(
    logits: Tensor,
    settings: Tensor,
    masks: Tensor | None = None,
    *,
    top_k: bool = False,
    top_p: bool = False,
    logprobs: int | None = None,
) -> Chosen:
    """Choose one token per row of logits f32 [R,V] as settings i64 [R,6] say.

    masks i32 [M, V/32 rounded up]: bit b of word j is set if token 32 j + b may be chosen; at least one must be.
    `top_k` and `top_p` say whether any row has such a filter: without them none is looked for. `logprobs` asks for what
    log-probabilities are made of, and for that many of the likeliest tokens. Waits for nothing.
    """
    assert logits.dtype == torch.float32, f"logits are fp32, found {logits.dtype}"
    assert settings.shape == (logits.shape[0], WIDTH), f"settings {tuple(settings.shape)} for {tuple(logits.shape)}"
    assert logits.shape[1] <= 1 << 18, f"{logits.shape[1]} tokens would overflow the sum of their weights"
    assert masks is None or masks.shape[1] == -(-logits.shape[1] // 32), "one bit per token"
    if backend_for(logits) == "triton":
        from shoal.kernels import _sampling

        return _sampling.sample(logits, settings, masks, top_k=top_k, top_p=top_p, logprobs=logprobs)
    return sample_torch(logits, settings, masks, top_k=top_k, top_p=top_p, logprobs=logprobs)


def logprob(logit: float, maximum: float, total: int) -> float:
    """The log-probability at temperature 1 of a token with this logit, from `maxima` and `totals`."""
    return logit - maximum - math.log(total / UNIT)


def sample_torch(
    logits: Tensor,
    settings: Tensor,
    masks: Tensor | None = None,
    *,
    top_k: bool = False,
    top_p: bool = False,
    logprobs: int | None = None,
) -> Chosen:
    """The twin of `sample`: every row by itself, sorted."""
    rows = [_choose(row, how, masks, top_k, top_p) for row, how in zip(logits, settings.tolist(), strict=True)]
    told, n, device = rows if logprobs is not None else [], logprobs or 0, logits.device
    top_ids = torch.full((len(told), n), -1, dtype=torch.int32, device=device)
    top_logits = torch.full((len(told), n), -math.inf, device=device)
    for i, row in enumerate(told):
        top = row.ranked[:n]
        top_ids[i, : len(top)], top_logits[i, : len(top)] = top.to(torch.int32), row.logits[top]
    return Chosen(
        torch.tensor([row.id for row in rows], dtype=torch.int64, device=device),
        torch.tensor([float(row.logits[row.id]) for row in told], device=device),
        torch.tensor([float(row.logits.max()) for row in told], device=device),
        torch.tensor([int(weights(row.logits, 1.0).sum()) for row in told], dtype=torch.int64, device=device),
        top_ids,
        top_logits,
    )


def weights(logits: Tensor, inverse_temperature: float) -> Tensor:
    """Of one row -> i64 [V]; what is barred has none."""
    distance = (logits - logits.max()) * inverse_temperature
    return (exact.exp(distance.clamp(min=FAINT)) * UNIT).to(torch.int64)


class _Row(NamedTuple):
    id: int
    logits: Tensor  # -inf for what is barred
    ranked: Tensor  # ids that may be chosen, likeliest first


def _choose(logits: Tensor, how: list[int], masks: Tensor | None, top_k: bool, top_p: bool) -> _Row:
    if how[MASK_ROW] >= 0:
        assert masks is not None, "a row of masks without masks"
        bits = (masks[how[MASK_ROW]][:, None] >> torch.arange(32, device=masks.device)) & 1
        logits = torch.where(bits.flatten()[: logits.shape[0]] == 1, logits, -torch.inf)
    ranked = torch.sort(logits, descending=True, stable=True).indices
    ranked = ranked[logits[ranked] > -torch.inf]
    if how[DRAW] < 0:
        return _Row(int(ranked[0]), logits, ranked)
    inverse = float(np.int32(how[INVERSE_TEMPERATURE]).view(np.float32))
    weight = weights(logits, inverse)
    kept = ranked[weight[ranked] >= how[MIN_WEIGHT]]
    if top_k and how[TOP_K]:
        kept = kept[: how[TOP_K]]
    if top_p and how[TOP_P] < _DRAW:
        share = weight[kept].cumsum(0)
        need = -(-int(share[-1]) * how[TOP_P] // (1 << 53))  # rounded up
        kept = kept[: int((share < need).sum()) + 1]
    ids = kept.sort().values
    cumulative = weight[ids].cumsum(0)
    target = int(cumulative[-1]) * how[DRAW] >> 53
    return _Row(int(ids[int((cumulative <= target).sum())]), logits, ranked)

"""Rotary position embedding with YaRN (arXiv 2309.00071), never truncated, in the NeoX form (halves, not pairs)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.kernels import native
from shoal.kernels.target import backend_for

_CHUNK = 512  # positions per call of cos: always this many, so that a row never depends on the table's length


def rope_tables(
    theta: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    original_context: int,
    concentration: float,
    head_dim: int,
    max_positions: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """(cos, sin), fp32 [max_positions, head_dim/2], both multiplied by `concentration`.

    Frequencies that turn more than `beta_fast` times within the original context stay, those that turn less than
    `beta_slow` times are divided by `factor`, a linear ramp between them. Operations and their fp32 rounding follow
    transformers' `_compute_yarn_parameters`, so that logits agree. `factor` 1 is the plain embedding.
    """
    inv_freq = _inverse_frequencies(theta, factor, beta_fast, beta_slow, original_context, head_dim)
    cos, sin = (torch.empty(max_positions, head_dim // 2) for _ in range(2))
    for start in range(0, max_positions, _CHUNK):
        angles = torch.arange(start, start + _CHUNK, dtype=torch.float32)[:, None] * inv_freq
        size = min(_CHUNK, max_positions - start)
        cos[start : start + size] = angles.cos()[:size] * concentration
        sin[start : start + size] = angles.sin()[:size] * concentration
    return cos.to(device), sin.to(device)


def _inverse_frequencies(
    theta: float, factor: float, beta_fast: float, beta_slow: float, original_context: int, head_dim: int
) -> Tensor:
    freqs = theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    if factor <= 1.0:
        return 1.0 / freqs

    def dimension(turns: float) -> float:
        """The (fractional) dimension whose frequency turns this many times within the original context."""
        return head_dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(dimension(beta_fast), 0.0), min(dimension(beta_slow), head_dim - 1.0)
    if low == high:
        high += 0.001  # keeps the ramp finite
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    kept = 1.0 - ramp
    return 1.0 / (factor * freqs) * (1.0 - kept) + 1.0 / freqs * kept


def apply_rope_(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate q [T,hq,hd] and k [T,hk,hd] in place by the angles of positions i64 [T]; cos, sin from `rope_tables`.

    The caller promises 0 <= position < cos.shape[0]. Computed in fp32, rounded once to the tensors' dtype.
    """
    assert q.shape[0] == k.shape[0] == positions.shape[0], "one position per token"
    match backend_for(q):
        case "native":
            native.apply_rope_(q, k, positions, cos, sin)
        case "triton":
            from shoal.kernels import _rope

            _rope.apply_rope_(q, k, positions, cos, sin)
        case "torch":
            apply_rope_torch_(q, k, positions, cos, sin)


def apply_rope_torch_(q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The twin of `apply_rope_`."""
    c, s = cos[positions][:, None, :], sin[positions][:, None, :]
    for x in (q, k):
        first, second = x.float().chunk(2, dim=-1)
        x.copy_(torch.cat((first * c - second * s, second * c + first * s), dim=-1))

"""Which experts a token visits, in which order rows travel, and how the results become one row again."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels import exact, native
from shoal.kernels.norm import rms_norm, rms_norm_torch
from shoal.kernels.target import backend_for


def route(logits: Tensor, k: int, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose the k largest of logits fp32 [T,E] -> (ids i32 [T,k], weights fp32 [T,k]).

    Largest first; of equal logits the lower expert id first. Weights are the softmax over the chosen k alone. Rows from
    `live` [1] (a whole number) on only fill a step up: they choose -1, nobody.
    """
    assert 0 < k <= logits.shape[1], f"top {k} of {logits.shape[1]} experts"
    assert logits.dtype == torch.float32, f"logits are fp32, found {logits.dtype}"
    match backend_for(logits):
        case "native":
            return _by_the_living(native.route(logits, k), live)
        case "triton":
            from shoal.kernels import _routing

            return _routing.route(logits, k, live)
        case "torch":
            return route_torch(logits, k, live)


def sort_by_expert(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Stable sort of ids i32 [R] by expert -> (order i32 [R'], offsets i32 [num_experts+1]).

    order[r] is the position in `ids` of sorted row r; expert e's rows are offsets[e] .. offsets[e+1]-1. Negative ids
    belong to another worker and are left out, so R' = offsets[-1]. On a GPU `expert_rows` has an order of its own.
    """
    return (
        native.sort_by_expert(ids, num_experts)
        if backend_for(ids) == "native"
        else sort_by_expert_torch(ids, num_experts)
    )


def combine(rows: Tensor, weights: Tensor, residual: Tensor | None = None) -> Tensor:
    """Weight and add each token's expert outputs: rows [T,k,H], weights fp32 [T,k] -> [T,H] in rows' dtype.

    In fp32, in top-k order, then `residual` [T,H] in rows' dtype onto the sum, rounded once at the end: the same bits
    wherever the rows were computed.
    """
    assert rows.shape[:2] == weights.shape, f"rows {tuple(rows.shape)}, weights {tuple(weights.shape)}"
    assert residual is None or residual.dtype == rows.dtype, f"rows {rows.dtype}, residual {residual.dtype}"
    match backend_for(rows):
        case "native":
            summed = native.combine(rows, weights)
            return summed if residual is None else residual + summed  # fp32: nothing was rounded in between
        case "triton":
            from shoal.kernels import _routing

            return _routing.combine(rows, weights, residual)
        case "torch":
            return combine_torch(rows, weights, residual)


def combine_normed(
    rows: Tensor, weights: Tensor, residual: Tensor | None, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(`combine` of these, its `rms_norm` by norm [H]): the end of a layer, and what the next one reads first.

    One launch on a GPU, with the bits of the two.
    """
    if backend_for(rows) == "triton":
        from shoal.kernels import _routing

        return _routing.combine_normed(rows, weights, residual, norm, eps)
    x = combine(rows, weights, residual)
    return x, rms_norm(x, norm, eps)


def route_torch(logits: Tensor, k: int, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The twin of `route`."""
    values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    shares = exact.exp(values[:, :k] - values[:, :1])
    total = shares[:, 0].clone()
    for j in range(1, k):
        total += shares[:, j]
    return _by_the_living((ids[:, :k].to(torch.int32), shares / total[:, None]), live)


def _by_the_living(chosen: tuple[Tensor, Tensor], live: Tensor | None) -> tuple[Tensor, Tensor]:
    """What was chosen, except by rows from `live` on."""
    ids, weights = chosen
    if live is None:
        return chosen
    return ids.masked_fill(torch.arange(ids.shape[0], device=ids.device)[:, None] >= live, -1), weights


def sort_by_expert_torch(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The twin of `sort_by_expert`."""
    ours = torch.nonzero(ids >= 0).flatten()
    order = ours[torch.sort(ids[ours], stable=True).indices]
    counts = torch.bincount(ids[ours].long(), minlength=num_experts)
    assert counts.shape[0] == num_experts, f"an id is not below {num_experts}"
    offsets = torch.zeros(num_experts + 1, dtype=torch.int32, device=ids.device)
    offsets[1:] = counts.cumsum(0)
    return order.to(torch.int32), offsets


def combine_torch(rows: Tensor, weights: Tensor, residual: Tensor | None = None) -> Tensor:
    """The twin of `combine`."""
    total = rows[:, 0].float() * weights[:, 0, None]
    for j in range(1, rows.shape[1]):
        total = total + rows[:, j].float() * weights[:, j, None]
    return (total if residual is None else residual.float() + total).to(rows.dtype)


def combine_normed_torch(
    rows: Tensor, weights: Tensor, residual: Tensor | None, norm: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The twin of `combine_normed`."""
    x = combine_torch(rows, weights, residual)
    return x, rms_norm_torch(x, norm, eps)

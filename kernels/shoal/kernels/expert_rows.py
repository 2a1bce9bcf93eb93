"""Every (token, expert) pair served here, from ids to rows: sorted by expert, both matmuls, and back in order."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels import native
from shoal.kernels.fragments import FragmentExperts
from shoal.kernels.moe_matmul import Weights, down, gate_up
from shoal.kernels.routing import sort_by_expert
from shoal.kernels.target import backend_for


def expert_rows(
    x: Tensor,
    ids: Tensor,
    slot_of: Tensor,
    w_up: Weights,
    w_down: Weights,
    loads: Tensor,
    *,
    limit: float,
    alpha: float,
) -> Tensor:
    """x [T,H], ids i32 [T,k] with -1 for pairs served elsewhere -> [P,H], a row per pair served here, in ids' order.
    A GPU's kernels return room for all T k pairs, rows of nobody behind the P: how many there are, only the GPU knows.

    slot_of i32 [E]: where an expert lies in w_up [slots,2I,H] and w_down [slots,H,I], -1 for nowhere. Adds the rows
    of each slot to loads i64 [slots]. Rows are not weighted.
    """
    match backend_for(x):
        case "native":
            assert not isinstance(w_up, FragmentExperts), "experts in a GPU's order reached the CPU"
            assert not isinstance(w_down, FragmentExperts), "experts in a GPU's order reached the CPU"
            return native.expert_rows(x, ids, slot_of, w_up, w_down, loads, limit=limit, alpha=alpha)
        case "triton":
            return _expert_rows_triton(x, ids, slot_of, w_up, w_down, loads, limit, alpha)
        case "torch":
            return expert_rows_torch(x, ids, slot_of, w_up, w_down, loads, limit=limit, alpha=alpha)


def _expert_rows_triton(
    x: Tensor,
    ids: Tensor,
    slot_of: Tensor,
    w_up: Weights,
    w_down: Weights,
    loads: Tensor,
    limit: float,
    alpha: float,
) -> Tensor:
    """Three launches for few tokens, none of which waits for the host: order, and both matmuls."""
    from shoal.kernels import _moe_matmul, _schedule

    assert isinstance(w_up, FragmentExperts), "experts are prepared for their device at load"
    assert isinstance(w_down, FragmentExperts), "experts are prepared for their device at load"
    plan = _schedule.arrange(ids, slot_of, loads)
    h = _moe_matmul.gate_up(x, plan.rows, plan.offsets, w_up, limit=limit, alpha=alpha, schedule=plan.schedule)
    return _moe_matmul.down(h, plan.offsets, w_down, places=plan.places, schedule=plan.schedule)


def expert_rows_torch(
    x: Tensor,
    ids: Tensor,
    slot_of: Tensor,
    w_up: Weights,
    w_down: Weights,
    loads: Tensor,
    *,
    limit: float,
    alpha: float,
) -> Tensor:
    """The twin of `expert_rows`."""
    k = ids.shape[1]
    held = ids >= 0
    slots = torch.where(held, slot_of[ids.clamp(min=0)], -1).to(torch.int32).flatten()
    order, offsets = sort_by_expert(slots, loads.shape[0])
    loads += offsets.diff()
    rows = torch.div(order, k, rounding_mode="floor").to(torch.int32)
    h = gate_up(x, rows, offsets, w_up, limit=limit, alpha=alpha)
    y = down(h, offsets, w_down)
    pair_of = held.flatten().cumsum(0) - 1
    out = torch.empty_like(y)
    out[pair_of[order.long()]] = y
    return out

"""Triton kernel of `dense`: one tile shape and one order over K for every batch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels._launch import ROUND_EACH, compute_dtype

_TILE_T, _TILE_N, _TILE_K = 64, 64, 128
_OPTIONS = {"num_warps": 4, "num_stages": 4, **ROUND_EACH}


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    rows, k = x.shape
    n = weight.shape[0]
    out = torch.empty(rows, n, dtype=out_dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    # Weight tiles on axis 0: neighbours read the same rows, and axis 1 may hold no more than 65,535 programs.
    _linear_kernel[(triton.cdiv(n, _TILE_N), triton.cdiv(rows, _TILE_T))](
        x,
        weight,
        weight if bias is None else bias,
        out if residual is None else residual,
        out,
        rows,
        n,
        k,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        COMPUTE=compute_dtype(x),
        TILE_T=_TILE_T,
        TILE_N=_TILE_N,
        TILE_K=_TILE_K,
        **_OPTIONS,
    )
    return out


@triton.jit(do_not_specialize=["T"])
def _linear_kernel(
    x,
    weight,
    bias,
    residual,
    out,
    T,
    N,
    K,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    COMPUTE: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """out [T,N] = x [T,K] @ weight [N,K].T + bias [N] + residual [T,N], weights on the side of many rows."""
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    t = tl.program_id(1) * TILE_T + tl.arange(0, TILE_T)
    acc = tl.zeros((TILE_N, TILE_T), tl.float32)
    for k0 in range(0, K, TILE_K):
        k = k0 + tl.arange(0, TILE_K)
        w_tile = tl.load(
            weight + n[:, None].to(tl.int64) * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0
        )
        x_tile = tl.load(
            x + t[None, :].to(tl.int64) * K + k[:, None], mask=(t < T)[None, :] & (k < K)[:, None], other=0.0
        )
        acc = tl.dot(w_tile.to(COMPUTE), x_tile.to(COMPUTE), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    place = t[:, None].to(tl.int64) * N + n[None, :]
    inside = (t < T)[:, None] & (n < N)[None, :]
    result = tl.trans(acc)
    if RESIDUAL:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)

"""Triton kernel of `norm_linear` for few tokens and a short weight, the router: one launch instead of two.

Every program norms the rows that it reads, writes them where the caller wants them, and multiplies what it wrote. Those
that share rows write the same bits, which are also those of `_norm`; the product has those of `_dense`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ... because the parameters of a kernel have no Python types: pointers, tensors and constants of Triton's language.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels import _dense, _norm
from shoal.kernels._dense import product
from shoal.kernels._launch import ROUND_EACH, compute_dtype
from shoal.kernels._norm import normed_rows
from shoal.kernels.chips import chip_for

_SHORT = 256  # weight rows: with more, every row would be normed too often
_FEW = 1024  # tokens: with more, two kernels that each fill the chip are faster
_ROWS = 4  # that one program norms, all at once
_TILE_N, _LIVE_N, _TILE_T, _TILE_K = 64, 16, 16, 128


def norm_linear(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype = torch.float32,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    tokens, k = x.shape
    n = weight.shape[0]
    chip = chip_for(x)
    if rows is not None or n > _SHORT or tokens > _FEW or chip.one_tile:
        normed = _norm.rms_norm(x, norm, eps, rows)
        return normed, _dense.linear(normed, weight, bias, out_dtype)
    normed, out = torch.empty_like(x), torch.empty(tokens, n, dtype=out_dtype, device=x.device)
    if tokens:
        stage_bytes = (_TILE_N + _TILE_T) * _TILE_K * 2
        _norm_linear_kernel[(triton.cdiv(n, _LIVE_N), triton.cdiv(tokens, _ROWS))](
            x,
            norm,
            weight,
            weight if bias is None else bias,
            normed,
            out,
            tokens,
            n,
            k,
            eps,
            BIAS=bias is not None,
            EVEN_K=k % _TILE_K == 0,
            COMPUTE=compute_dtype(x),
            **_norm.padded(k),
            ROWS=_ROWS,
            LIVE=_LIVE_N,
            TILE_T=_TILE_T,
            TILE_N=_TILE_N,
            TILE_K=_TILE_K,
            num_warps=4,
            num_stages=max(2, min(5, chip.room(2) // stage_bytes)),
            **ROUND_EACH,
        )
    return normed, out


@triton.jit(do_not_specialize=["T"])
def _norm_linear_kernel(
    x,
    norm,
    weight,
    bias,
    normed,
    out,
    T,
    N,
    K,
    eps,
    BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    WIDTH: tl.constexpr,
    LOG2: tl.constexpr,
    ROWS: tl.constexpr,
    LIVE: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """normed [T,K] = rms_norm(x [T,K]); out [T,N] = normed @ weight [N,K].T + bias [N]; ROWS tokens, LIVE weights."""
    first = tl.program_id(1) * ROWS
    r, h = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    place = r[:, None].to(tl.int64) * K + h[None, :]
    inside = (r < T)[:, None] & (h < K)[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(norm + h, mask=h < K, other=0.0).to(tl.float32)
    rows = normed_rows(values, gain, K, eps, ROWS, WIDTH, LOG2)
    tl.store(normed + place, rows.to(normed.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # the product reads what other threads of this program wrote

    column, row = tl.arange(0, TILE_T), tl.arange(0, TILE_N)
    t, n = first + column, tl.program_id(0) * LIVE + row
    t_live, n_live = (column < ROWS) & (t < T), (row < LIVE) & (n < N)
    acc = product(normed, weight, t, n, t_live, n_live, K, EVEN_K, COMPUTE, TILE_T, TILE_N, TILE_K)
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0).to(tl.float32)[:, None]
    tl.store(
        out + t[:, None].to(tl.int64) * N + n[None, :],
        tl.trans(acc).to(out.dtype.element_ty),
        mask=t_live[:, None] & n_live[None, :],
    )

"""Sums, products and exponentials whose value depends on their own operands and on nothing else.

A library matmul, and the vector tail of a library exponential, may round differently with the number of rows, their
alignment or the number of threads. Everything here is made of single additions, multiplications and divisions of
whole tensors, each rounded once by IEEE 754, in an order fixed by the length of the summed dimension alone. So a row
gives the same bits in every batch. The torch twins are built on this; it is clear and slow.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 22  # elements of one temporary, 16 MiB in fp32; cutting changes no sum


def tree_sum(a: Tensor) -> Tensor:
    """Sum [..., n] over its last dimension, the upper half folded onto the lower until one is left: -> [...]."""
    n = a.shape[-1]
    if n == 0:
        return a.new_zeros(a.shape[:-1])
    while n > 1:
        half = (n + 1) // 2  # of an odd length the middle element waits for the next round
        folded = a[..., :half].clone()
        folded[..., : n - half] += a[..., half:n]
        a, n = folded, half
    return a[..., 0]


def matmul_t(x: Tensor, w: Tensor) -> Tensor:
    """x [T,K] times the transpose of w [N,K], both any float dtype, in fp32 -> fp32 [T,N]."""
    rows, k = x.shape
    n = w.shape[0]
    out = torch.empty(rows, n, dtype=torch.float32, device=x.device)
    x = x.float()
    n_step = max(1, _CHUNK // max(k, 1))
    for lo in range(0, n, n_step):
        w_part = w[lo : lo + n_step].float()
        row_step = max(1, _CHUNK // max(w_part.numel(), 1))
        for row in range(0, rows, row_step):
            out[row : row + row_step, lo : lo + n_step] = tree_sum(x[row : row + row_step, None, :] * w_part)
    return out


def exp(x: Tensor) -> Tensor:
    """e to the power of fp32 `x`, within 2 ulp; results under 2^-126 are 0, over the largest fp32 inf.

    Range reduction and the polynomial of Cephes' expf (S. Moshier): e^x = 2^n * e^r with |r| <= ln(2)/2.
    """
    inside = x.clamp(-87.5, 88.75)
    n = torch.round(inside * 1.44269504088896341)
    r = inside - n * 0.693359375  # ln 2 in two parts; the first is short, so this product is exact
    r = r + n * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    for c in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + c
    y = p * (r * r) + r + 1.0
    half = torch.floor(n * 0.5)  # two factors, because 2^128 alone is no fp32 number
    y = y * _power_of_two(half) * _power_of_two(n - half)
    y = torch.where(x < -87.33654, torch.zeros_like(y), y)
    return torch.where(x > 88.72283, torch.full_like(y, torch.inf), y)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) of fp32 `x`."""
    return 1.0 / (1.0 + exp(-x))


def _power_of_two(n: Tensor) -> Tensor:
    """2^n for whole numbers n in -126..127 held as fp32, written straight into the exponent bits."""
    return ((n.to(torch.int32) + 127) << 23).view(torch.float32)

"""The C functions of one native library, called with tensors.

Tensors are contiguous, on the CPU, fp32 unless said otherwise; asserts check this before a pointer leaves Python, and
the C side checks every index before it writes anything. Calls release the interpreter lock. Each output row is the same
bits whatever the other rows, their order and the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shoal.kernels.native.packing import LANES, STEP, PackedExperts, PackedLinear, padded

EVERY_KEY = 2**62  # a window that hides nothing

# Function -> its arguments: pointers, then integers, then floats.
SIGNATURES = {
    "pack_dense": "pp ii",
    "pack_mxfp4": "pppp iii",
    "linear": "pppp iii",
    "gate_up": "ppppppp iiiiii ff",
    "down": "pppppp iiiii",
    "rms_norm": "ppp ii f",
    "apply_rope": "ppppp iiiii",
    "write_kv": "ppppp iii",
    "attention": "pppppppp iiiiiiiii f",
    "route": "ppp iii",
    "sort_by_expert": "ppp ii",
    "combine": "ppp iii",
    "norm_linear": "pppppp iii f",
    "attention_block": "ppppppppppppppppp iiiiiiiiiii ff",
    "expert_rows": "pppppppppppp iiiiiii ff",
    "forward": "pp",
    "read": "pp i",
    "multiply_add": "p ii",
}
C_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


class Experts(Protocol):
    """Packed experts: blocks u8 [E,N,G,16], scales u8 [E,N,G], bias bf16 [E,N]; K = 32 G."""

    @property
    def blocks(self) -> Tensor: ...
    @property
    def scales(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor: ...


class Paging(Protocol):
    """cu_q i32 [S+1], context_lens i32 [S] (keys, this step's included), block_tables i32 [S,maxb]."""

    @property
    def cu_q(self) -> Tensor: ...
    @property
    def context_lens(self) -> Tensor: ...
    @property
    def block_tables(self) -> Tensor: ...


class Library:
    """One loaded library: a method per operation, with its own pool of threads."""

    def __init__(self, isa: str, path: Path) -> None:
        self.isa = isa
        self.path = path
        self.c = ctypes.CDLL(str(path))
        self.c.shoal_threads.restype = ctypes.c_int64
        self.c.shoal_is_fused.restype = ctypes.c_int64
        self.c.shoal_set_threads.argtypes = [ctypes.c_int64]
        self.c.shoal_set_threads.restype = None
        for name, signature in SIGNATURES.items():
            function = getattr(self.c, f"shoal_{name}")
            function.argtypes = [C_TYPES[kind] for kind in signature.replace(" ", "")]
            function.restype = ctypes.c_char_p

    @property
    def fused(self) -> bool:
        """Whether a multiply-add rounds once. Libraries that agree in this agree in every bit of every result."""
        return bool(self.c.shoal_is_fused())

    @property
    def threads(self) -> int:
        """Threads that share an operation, the calling one included."""
        return int(self.c.shoal_threads())

    def set_threads(self, count: int) -> None:
        assert count >= 1, count
        self.c.shoal_set_threads(count)

    def pack_linear(self, weight: Tensor | PackedLinear) -> PackedLinear:
        """weight bf16 [N,K] as `linear` reads it; one that is packed already is given back."""
        if isinstance(weight, PackedLinear):
            return weight
        N, K = weight.shape
        check(weight, torch.bfloat16, (N, K))
        data = torch.empty((padded(N, LANES), padded(K, STEP)), dtype=torch.bfloat16)
        call(self.c.shoal_pack_dense, weight, data, N, K)
        return PackedLinear(data, N, K)

    def pack_experts(self, w: Experts | PackedExperts, *, int8: bool = False) -> PackedExperts:
        """Experts as `gate_up` and `down` read them; packed ones are given back as they are."""
        if isinstance(w, PackedExperts):
            return w
        E, N, G, _ = w.blocks.shape
        check(w.blocks, torch.uint8, (E, N, G, 16))
        check(w.scales, torch.uint8, (E, N, G))
        check(w.bias, torch.bfloat16, (E, N))
        codes = torch.empty((E, padded(N, LANES), G, 16), dtype=torch.uint8)
        scales = torch.empty((E, padded(N, LANES), G), dtype=torch.uint8)
        call(self.c.shoal_pack_mxfp4, w.blocks, w.scales, codes, scales, E, N, G)
        return PackedExperts(codes, scales, w.bias, int8)

    def linear(
        self, x: Tensor, weight: Tensor | PackedLinear, bias: Tensor | None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """x [T,K] times weight bf16 [N,K] transposed, plus bias bf16 [N]: [T,N] in out_dtype or fp32."""
        packed = self.pack_linear(weight)
        (T, K), N = x.shape, packed.rows
        check(x, torch.float32, (T, K))
        check_linear(packed, bias, N, K)
        out = torch.empty((T, N), dtype=torch.float32)
        call(self.c.shoal_linear, x, packed.data, bias, out, T, N, K)
        return out if out_dtype is None else out.to(out_dtype)

    def gate_up(
        self, x: Tensor, rows: Tensor, offsets: Tensor, w: Experts | PackedExperts, *, limit: float, alpha: float
    ) -> Tensor:
        """Row r, of the expert e with offsets[e] <= r < offsets[e+1]: SwiGLU of x[rows[r]] times that expert's weights.

        x [T,K], rows i32 [R], offsets i32 [E+1]; weight rows alternate gate and up; result [R,N/2].
        """
        packed = self.pack_experts(w)
        (T, K), R = x.shape, rows.shape[0]
        E, N = check_experts(packed, K)
        assert N % 2 == 0, N
        check(x, torch.float32, (T, K))
        check(rows, torch.int32, (R,))
        check(offsets, torch.int32, (E + 1,))
        out = torch.empty((R, N // 2), dtype=torch.float32)
        call(
            self.c.shoal_gate_up,
            *(
                x,
                rows,
                offsets,
                packed.blocks,
                packed.scales,
                packed.bias,
                out,
                T,
                R,
                E,
                N,
                K,
                packed.int8,
                limit,
                alpha,
            ),
        )
        return out

    def down(self, h: Tensor, offsets: Tensor, w: Experts | PackedExperts) -> Tensor:
        """h [R,K] grouped by expert as in `gate_up`, times its weights, plus its bias: [R,N], unweighted."""
        packed = self.pack_experts(w)
        R, K = h.shape
        E, N = check_experts(packed, K)
        check(h, torch.float32, (R, K))
        check(offsets, torch.int32, (E + 1,))
        out = torch.empty((R, N), dtype=torch.float32)
        call(self.c.shoal_down, h, offsets, packed.blocks, packed.scales, packed.bias, out, R, E, N, K, packed.int8)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T,H] over the root of its mean square, times weight [H] (any float dtype): [T,H]."""
        T, H = x.shape
        check(x, torch.float32, (T, H))
        weight = weight.float()
        check(weight, torch.float32, (H,))
        out = torch.empty_like(x)
        call(self.c.shoal_rms_norm, x, weight, out, T, H, eps)
        return out

    def apply_rope_(self, q: Tensor, k: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turns q [T,hq,hd] and k [T,hk,hd] in place (NeoX halves) by cos, sin [P,hd/2] at positions i64 [T]."""
        (T, hq, hd), hk, P = q.shape, k.shape[1], cos.shape[0]
        assert hd % 2 == 0, hd
        check(q, torch.float32, (T, hq, hd))
        check(k, torch.float32, (T, hk, hd))
        check(positions, torch.int64, (T,))
        check(cos, torch.float32, (P, hd // 2))
        check(sin, torch.float32, (P, hd // 2))
        call(self.c.shoal_apply_rope, q, k, positions, cos, sin, T, hq, hk, hd // 2, P)

    def write_kv(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        """k, v [T,hk,hd] into the caches [B,bs,hk,hd] at slots i64 [T] (block * bs + offset); negative: skipped."""
        T, hk, hd = k.shape
        B, bs, _, _ = k_cache.shape
        check(k, torch.float32, (T, hk, hd))
        check(v, torch.float32, (T, hk, hd))
        check(k_cache, torch.float32, (B, bs, hk, hd))
        check(v_cache, torch.float32, (B, bs, hk, hd))
        check(slots, torch.int64, (T,))
        call(self.c.shoal_write_kv, k, v, k_cache, v_cache, slots, T, hk * hd, B * bs)

    def attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: Paging,
        sinks: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        """q [T,hq,hd] over the paged caches [B,bs,hk,hd], sinks [hq] (any float dtype) in the denominator: [T,hq,hd].

        Query j of sequence s stands at position context_lens[s] - queries + j and sees the `window` positions up to
        and with its own (all if None). hd is a multiple of 16, at most 256; hq a multiple of hk.
        """
        T, hq, hd = q.shape
        B, bs, hk, _ = k_cache.shape
        S, max_blocks = batch.block_tables.shape
        assert hq % hk == 0, (hq, hk)
        assert window is None or window >= 1, window
        check(q, torch.float32, (T, hq, hd))
        check(k_cache, torch.float32, (B, bs, hk, hd))
        check(v_cache, torch.float32, (B, bs, hk, hd))
        check(batch.cu_q, torch.int32, (S + 1,))
        check(batch.context_lens, torch.int32, (S,))
        check(batch.block_tables, torch.int32, (S, max_blocks))
        sinks = sinks.float()
        check(sinks, torch.float32, (hq,))
        out = torch.empty_like(q)
        call(
            self.c.shoal_attention,
            *(q, k_cache, v_cache, batch.cu_q, batch.context_lens, batch.block_tables, sinks, out),
            *(T, S, hq, hk, hd, B, bs, max_blocks, EVERY_KEY if window is None else window, scale),
        )
        return out

    def route(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """logits [T,E] -> ids i32 [T,k], descending, ties to the lower expert; weights [T,k], their softmax."""
        T, E = logits.shape
        assert 1 <= k <= E, (k, E)
        check(logits, torch.float32, (T, E))
        ids, weights = torch.empty((T, k), dtype=torch.int32), torch.empty((T, k), dtype=torch.float32)
        call(self.c.shoal_route, logits, ids, weights, T, E, k)
        return ids, weights

    def sort_by_expert(self, ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
        """ids i32 [R] -> order i32 [R'] of its indices grouped by expert, stable, negative ids left out;
        offsets i32 [num_experts+1] of each expert's rows in it."""
        (R,) = ids.shape
        check(ids, torch.int32, (R,))
        order, offsets = torch.empty(R, dtype=torch.int32), torch.empty(num_experts + 1, dtype=torch.int32)
        call(self.c.shoal_sort_by_expert, ids, order, offsets, R, num_experts)
        return order[: int(offsets[-1])], offsets

    def combine(self, rows: Tensor, weights: Tensor) -> Tensor:
        """rows [T,k,H], weights [T,k] -> [T,H]: the weighted sum in the order of k."""
        T, k, H = rows.shape
        check(rows, torch.float32, (T, k, H))
        check(weights, torch.float32, (T, k))
        out = torch.empty((T, H), dtype=torch.float32)
        call(self.c.shoal_combine, rows, weights, out, T, k, H)
        return out

    def read(self, data: Tensor, sums: Tensor) -> None:
        """Reads data [n] once in order, whole MiB of it, and does nothing with it. For measuring."""
        call(self.c.shoal_read, data, sums, data.numel())

    def multiply_add(self, sums: Tensor, tasks: int, rounds: int) -> None:
        """Does `tasks` times `rounds` rounds of twelve multiply-adds of 16 lanes. For measuring."""
        call(self.c.shoal_multiply_add, sums, tasks, rounds)


def check(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    fits = tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu
    assert fits, (tensor.dtype, dtype, tuple(tensor.shape), shape, tensor.stride(), tensor.device)


def check_linear(packed: PackedLinear, bias: Tensor | None, N: int, K: int) -> None:
    assert packed.shape == (N, K), (packed.shape, N, K)
    check(packed.data, torch.bfloat16, (padded(N, LANES), padded(K, STEP)))
    if bias is not None:
        check(bias, torch.bfloat16, (N,))


def check_experts(w: PackedExperts, K: int) -> tuple[int, int]:
    E, N = w.bias.shape
    G = K // STEP
    assert G * STEP == K, K
    check(w.blocks, torch.uint8, (E, padded(N, LANES), G, 16))
    check(w.scales, torch.uint8, (E, padded(N, LANES), G))
    check(w.bias, torch.bfloat16, (E, N))
    return E, N


def call(function: Callable[..., bytes | None], *arguments: Tensor | float | None) -> None:
    wrong = function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])
    assert wrong is None, wrong.decode()

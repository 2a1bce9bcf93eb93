"""A whole step in one call of the native library, for a model whose experts are all here.

Between two operations the split path goes back to Python; here nothing does, and the bits are the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shoal.kernels.native import binding
from shoal.kernels.native.binding import EVERY_KEY, Library, Paging, check, check_experts, check_linear
from shoal.kernels.native.blocks import Attention, Heads
from shoal.kernels.native.packing import PackedExperts, PackedLinear

PHASES = ("attention", "routing", "experts", "unembedding")


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer: attention and its cache (keys, values [B,bs,hk,hd]); router norm [H], weight [E,H], bias bf16 [E];
    experts as for `blocks.expert_rows`. `window` None: full attention."""

    attention: Attention
    cache: tuple[Tensor, Tensor]
    window: int | None
    router_norm: Tensor
    router: PackedLinear
    router_bias: Tensor
    slot_of: Tensor
    gate_up: PackedExperts
    down: PackedExperts
    loads: Tensor


@dataclass(frozen=True, slots=True)
class Ends:
    """What is before and behind the layers: embedding bf16 [V,H], norm [H], unembedding [V,H]; cos, sin [P,hd/2]."""

    embedding: Tensor
    norm: Tensor
    unembedding: PackedLinear
    rope: tuple[Tensor, Tensor]


class Place(Protocol):
    """Where one kind of layer reads and writes: slots i64 [T], and its paging."""

    @property
    def slots(self) -> Tensor: ...
    @property
    def batch(self) -> Paging: ...


class Forward:
    """Keeps pointers to the tensors it was made of, and the tensors alive. Thread-compatible."""

    def __init__(
        self, library: Library, layers: Sequence[LayerParts], ends: Ends, heads: Heads, top_k: int,
        *, limit: float, alpha: float,
    ) -> None:  # fmt: skip
        self._library = library
        self._kept = (tuple(layers), ends)
        V, H = ends.embedding.shape
        E, inner = layers[0].router.rows, layers[0].gate_up.out_features // 2
        int8 = layers[0].gate_up.int8
        check(ends.embedding, torch.bfloat16, (V, H))
        check(ends.norm, torch.float32, (H,))
        check_linear(ends.unembedding, None, V, H)
        P, bs = ends.rope[0].shape[0], layers[0].cache[0].shape[1]
        for table in ends.rope:
            check(table, torch.float32, (P, heads.head_dim // 2))
        blocks = [1, 1]  # of the full and of the sliding pool
        for layer in layers:
            blocks[layer.window is not None] = layer.cache[0].shape[0]
        self._layers = (_Layer * len(layers))(*(_layer(part, heads, H, E, inner, bs, blocks, int8) for part in layers))
        self._model = _Model(
            self._layers, *_pointers(ends.embedding, ends.unembedding.data, ends.norm, *ends.rope),
            len(layers), V, H, heads.heads, heads.kv_heads, heads.head_dim, E, top_k, inner, P, bs, int8, tuple(blocks),
            heads.eps, heads.scale, limit, alpha,
        )  # fmt: skip
        self._seconds = torch.zeros(len(PHASES), dtype=torch.float64)

    def __call__(
        self, ids: Tensor, positions: Tensor, full: Place, sliding: Place, rows: Tensor
    ) -> tuple[Tensor, list[float]]:
        """ids, positions i64 [T], rows i64 [L] -> (logits [L,V], seconds per phase of PHASES)."""
        (T,), (L,), V = ids.shape, rows.shape, self._model.V
        S = full.batch.context_lens.shape[0]
        for indices, count in ((ids, T), (positions, T), (rows, L), (full.slots, T), (sliding.slots, T)):
            check(indices, torch.int64, (count,))
        check(full.batch.cu_q, torch.int32, (S + 1,))
        check(full.batch.context_lens, torch.int32, (S,))
        tables = full.batch.block_tables, sliding.batch.block_tables
        for table in tables:
            check(table, torch.int32, (S, table.shape[1]))
        logits = torch.empty((L, V), dtype=torch.float32)
        self._seconds.zero_()
        step = _Step(
            *_pointers(ids, positions, rows), tuple(_pointers(full.slots, sliding.slots)),
            *_pointers(full.batch.cu_q, full.batch.context_lens), tuple(_pointers(*tables)),
            *_pointers(logits, self._seconds), T, S, L, tuple(table.shape[1] for table in tables),
        )  # fmt: skip
        binding.call(self._library.c.shoal_forward, ctypes.addressof(self._model), ctypes.addressof(step))
        return logits, self._seconds.tolist()


def _layer(
    part: LayerParts, heads: Heads, H: int, E: int, inner: int, bs: int, blocks: list[int], int8: bool
) -> _Layer:
    a, hq, hk, hd = part.attention, heads.heads, heads.kv_heads, heads.head_dim
    assert isinstance(a.qkv, PackedLinear), "qkv is not packed"
    assert isinstance(a.out, PackedLinear), "out is not packed"
    for vector, size in ((a.norm, H), (part.router_norm, H), (a.sinks, hq)):
        check(vector, torch.float32, (size,))
    check_linear(a.qkv, a.qkv_bias, (hq + 2 * hk) * hd, H)
    check_linear(a.out, a.out_bias, H, hq * hd)
    check_linear(part.router, part.router_bias, E, H)
    for cache in part.cache:
        check(cache, torch.float32, (blocks[part.window is not None], bs, hk, hd))
    slots = part.gate_up.num_experts
    assert part.gate_up.int8 == part.down.int8 == int8, (part.gate_up.int8, part.down.int8, int8)
    assert check_experts(part.gate_up, H) == (slots, 2 * inner), part.gate_up.bias.shape
    assert check_experts(part.down, inner) == (slots, H), part.down.bias.shape
    check(part.slot_of, torch.int32, (E,))
    check(part.loads, torch.int64, (slots,))
    return _Layer(
        *_pointers(a.norm, a.sinks, part.router_norm, a.qkv.data, a.qkv_bias, a.out.data, a.out_bias),
        *_pointers(part.router.data, part.router_bias, *part.cache, part.slot_of),
        *_pointers(part.gate_up.blocks, part.gate_up.scales, part.down.blocks, part.down.scales),
        *_pointers(part.gate_up.bias, part.down.bias, part.loads),
        slots, part.window is not None, EVERY_KEY if part.window is None else part.window,
    )  # fmt: skip


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


# The structs of src/forward.cpp, field by field.
def _fields(pointers: str, integers: str, floats: str = "") -> list[tuple[str, type]]:
    kinds = ((pointers, ctypes.c_void_p), (integers, ctypes.c_int64), (floats, ctypes.c_double))
    return [
        (name.rstrip("2"), kind * 2 if name.endswith("2") else kind) for names, kind in kinds for name in names.split()
    ]


class _Layer(ctypes.Structure):
    _fields_ = _fields(
        "norm sinks router_norm qkv qkv_bias out out_bias router router_bias keys values slot_of "
        "up_codes up_scales down_codes down_scales up_bias down_bias loads",
        "slots pool window",
    )


class _Model(ctypes.Structure):
    V: int
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        *_fields(
            "embedding unembedding norm cos sin",
            "count V H hq hk hd E k I P block_size int8 blocks2",
            "eps scale limit alpha",
        ),
    ]


class _Step(ctypes.Structure):
    _fields_ = _fields("ids positions rows slots2 cu_q context_lens tables2 logits seconds", "T S L max_blocks2")

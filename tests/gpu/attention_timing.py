"""Times of attention at the shapes of gpt-oss: decoding beside a copy, prompts beside the vendor's library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoal.kernels import _attention
from shoal.kernels.attention import AttentionBatch, BlockShape
from shoal.kernels.rope import rope_tables
from tests.gpu import stopwatch
from tests.gpu.stopwatch import copy_tb_s, drawn, matmul_tflop_s, microseconds

HEADS, KV_HEADS, HEAD_DIM, BLOCK, WINDOW = 64, 8, 64, 16, 128
SHAPE = BlockShape(HEADS, KV_HEADS, HEAD_DIM, 1e-5, 0.125)
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2  # of a key and a value, bf16
DECODE = ((1, 1024), (4, 1024), (16, 1024), (64, 1024), (256, 1024), (1, 8192), (4, 8192), (16, 8192), (64, 8192),
          (256, 8192), (1, 32768), (1, 131072))  # fmt: skip
PROMPTS = (1024, 8192, 16384, 32768)
_BLOCKS = 160_000  # 2.6 GB of keys, and of values
_LONGEST = 131072
_MOST_CALLS = 128
_READ = 200_000_000  # bytes that calls take in turn, so that each finds its own in memory, not in the L2


def rows(until: float) -> Iterator[dict[str, Any]]:
    """Rows of the record, one after another, until the clock (time.monotonic) says `until`."""
    copy, matmul = copy_tb_s(), matmul_tflop_s(8192, 8192, 8192)
    yield {"case": "copy", "value": round(copy, 3), "unit": "TB/s"}
    yield {"case": "bf16 matmul of the vendor's library", "value": round(matmul, 1), "unit": "TFLOP/s"}
    cache = (
        drawn(1, _BLOCKS, BLOCK, KV_HEADS, HEAD_DIM),
        drawn(2, _BLOCKS, BLOCK, KV_HEADS, HEAD_DIM),
    )
    rope = rope_tables(150000.0, 32.0, 32.0, 1.0, 4096, 1.35, HEAD_DIM, _LONGEST, stopwatch.DEVICE)
    for number in range(max(len(DECODE), len(PROMPTS))):
        if time.monotonic() > until:
            yield {"case": f"attention, {number} and more", "skipped": "the time given was over"}
            return
        if number < len(DECODE):
            yield from _decode(*DECODE[number], cache, rope, copy)
        if number < len(PROMPTS):
            yield from _prompt(PROMPTS[number], cache, rope, matmul)


def _call(
    new: int, sequences: int, context: int, window: int | None, seed: int, cache: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor],
) -> Callable[[], object]:  # fmt: skip
    """One launch over sequences of `new` queries and `context` keys, their blocks drawn at random."""

    def ints(values: Tensor) -> Tensor:
        return values.to(stopwatch.DEVICE, torch.int32)

    blocks = -(-context // BLOCK)
    picked = torch.randperm(_BLOCKS, generator=torch.Generator().manual_seed(seed))[: sequences * blocks]
    table, last = picked.view(sequences, blocks), torch.arange(context - new, context)
    places = (table[:, last // BLOCK] * BLOCK + last % BLOCK).flatten().to(stopwatch.DEVICE)
    batch = AttentionBatch(
        ints(torch.arange(sequences + 1) * new), ints(torch.full((sequences,), context)), ints(table)
    )
    positions = last.repeat(sequences).to(stopwatch.DEVICE)
    qkv, sinks = drawn(seed, sequences * new, (HEADS + 2 * KV_HEADS) * HEAD_DIM), drawn(seed, HEADS)
    return partial(_attention.rope_attention, qkv, SHAPE, rope, positions, cache, places, batch, sinks, window)


def _decode(
    batch: int, context: int, cache: tuple[Tensor, Tensor], rope: tuple[Tensor, Tensor], copy: float
) -> Iterator[dict[str, Any]]:
    """Every sequence one token; the bytes of the keys and values that it sees are the least that is read."""
    for name, window in (("full", None), ("sliding", WINDOW)):
        size = batch * min(context, window or context) * TOKEN_BYTES
        calls = [
            _call(1, batch, context, window, seed, cache, rope)
            for seed in range(min(_MOST_CALLS, max(2, -(-_READ // size))))
        ]
        us = microseconds(calls)
        tb_s = size / us / 1e6
        yield {"case": f"decode {name} batch {batch} at {context}", "value": round(us, 2), "unit": "us"}
        yield {
            "case": f"decode {name} batch {batch} at {context}, keys and values", "value": round(tb_s, 3),
            "unit": "TB/s", "peer": "copy", "peer_value": round(copy, 3), "ratio": round(tb_s / copy, 3),
        }  # fmt: skip


def _prompt(
    length: int, cache: tuple[Tensor, Tensor], rope: tuple[Tensor, Tensor], matmul: float
) -> Iterator[dict[str, Any]]:
    """One prompt as a whole; beside the vendor's attention, which knows neither sinks nor pages."""
    for name, window in (("full", None), ("sliding", WINDOW)):
        us = microseconds([_call(length, 1, length, window, seed, cache, rope) for seed in range(2)], 5)
        seen = length * (length + 1) / 2 if window is None else length * window - window * (window - 1) / 2
        tflop_s = 4 * seen * HEADS * HEAD_DIM / us / 1e6
        row = {
            "case": f"prompt {name} of {length}", "value": round(tflop_s, 1), "unit": "TFLOP/s",
            "peer": "torch.matmul bf16", "peer_value": round(matmul, 1), "ratio": round(tflop_s / matmul, 3),
            "us": round(us, 1),
        }  # fmt: skip
        yield row
        if window is None and length <= 16384:
            yield _beside_vendors(length, us)


def _beside_vendors(length: int, us: float) -> dict[str, Any]:
    case = f"prompt full of {length}, beside the vendor's"
    try:
        other = microseconds([_vendors(length, seed) for seed in range(2)], 5)
    except RuntimeError as error:  # it serves some GPUs and some shapes
        return {"case": case, "skipped": f"left out: {error}"}
    return {
        "case": case, "value": round(us, 1), "unit": "us", "peer": "scaled_dot_product_attention (flash)",
        "peer_value": round(other, 1), "ratio": round(other / us, 3),
    }  # fmt: skip


def _vendors(length: int, seed: int) -> Callable[[], object]:
    """Every query head with keys and values of its own: the kernel that is meant need not know groups."""
    q = drawn(seed, 1, HEADS, length, HEAD_DIM)
    k, v = (drawn(seed + n, 1, KV_HEADS, length, HEAD_DIM) for n in (1, 2))
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))

    def attend() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # another might need memory for all scores
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return attend

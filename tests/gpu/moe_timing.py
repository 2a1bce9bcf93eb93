"""Times of a layer's experts at the shapes of gpt-oss-20b and 120b, beside a copy, a matmul and a plain baseline."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.kernels import _moe_matmul, _routing, _schedule, mxfp4
from shoal.kernels._schedule import Arrangement
from shoal.kernels.fragments import FragmentExperts, permute
from shoal.kernels.mxfp4 import ExpertWeights
from tests.gpu import stopwatch
from tests.gpu.stopwatch import copy_tb_s, drawn, eager_microseconds, matmul_tflop_s, microseconds

HIDDEN, TOP_K = 2880, 4
MODELS = (("20b", 32, 4), ("120b", 128, 2))  # experts of a layer, layers that take turns
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192)
EXPERT_BYTES = HIDDEN * HIDDEN * 3 * 17 // 32  # gate, up and down: 16 bytes and a scale for every 32 weights
LIMIT, ALPHA = 7.0, 1.702
DECODE_GOAL_TB_S, PREFILL_GOAL = 2.8, 0.6  # packed bytes from batch 4 up; share of the matmul's rate
WORKS = 12  # batches that take turns
BASELINE_BATCHES = (1, 16, 256, 4096)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's experts, as published and as a GPU reads them."""

    published: tuple[ExpertWeights, ExpertWeights]
    up: FragmentExperts
    down: FragmentExperts

    @classmethod
    def random(cls, seed: int, experts: int) -> Layer:
        up, down = _experts(seed, experts, 2 * HIDDEN), _experts(seed + 1000, experts, HIDDEN)
        return cls((up, down), permute(up), permute(down))


def _experts(seed: int, experts: int, rows: int) -> ExpertWeights:
    """All codes and usual scales, drawn on the GPU."""
    random = torch.Generator(stopwatch.DEVICE).manual_seed(seed)
    shape = (experts, rows, HIDDEN // 32, 16)
    return ExpertWeights(
        torch.randint(0, 256, shape, dtype=torch.uint8, device=stopwatch.DEVICE, generator=random),
        torch.randint(119, 125, shape[:3], dtype=torch.uint8, device=stopwatch.DEVICE, generator=random),
        drawn(seed, experts, rows),
    )


@dataclass(frozen=True, slots=True)
class Work:
    """One batch of one layer: tokens, and how they are ordered."""

    layer: Layer
    x: Tensor
    ids: Tensor
    slot_of: Tensor
    loads: Tensor
    plan: Arrangement

    def experts(self) -> Tensor:
        """Both matmuls, as the engine launches them."""
        plan, layer = self.plan, self.layer
        h = _moe_matmul.gate_up(
            self.x, plan.rows, plan.offsets, layer.up, limit=LIMIT, alpha=ALPHA, schedule=plan.schedule
        )
        return _moe_matmul.down(h, plan.offsets, layer.down, places=plan.places, schedule=plan.schedule)

    def arrange(self) -> Arrangement:
        return _schedule.arrange(self.ids, self.slot_of, self.loads)

    def hit(self) -> int:
        return int((self.plan.offsets.diff() > 0).sum())

    def baseline(self) -> Callable[[], Tensor]:
        """Dequantise each expert that was hit, then the vendor's matmul: what a framework does without a kernel."""
        bounds, (up, down) = self.plan.offsets.tolist(), self.layer.published
        out = torch.empty(self.ids.numel(), HIDDEN, dtype=torch.bfloat16, device=stopwatch.DEVICE)
        hits = [(e, lo, hi) for e, (lo, hi) in enumerate(itertools.pairwise(bounds)) if lo < hi]

        def run() -> Tensor:
            for e, lo, hi in hits:
                x = self.x[self.plan.rows[lo:hi].long()]
                z = x @ mxfp4.dequantize(up.blocks[e], up.scales[e], torch.bfloat16).T + up.bias[e]
                gate, linear = z[:, ::2].clamp(max=LIMIT), z[:, 1::2].clamp(-LIMIT, LIMIT)
                h = gate * torch.sigmoid(ALPHA * gate) * (linear + 1)
                out[lo:hi] = h @ mxfp4.dequantize(down.blocks[e], down.scales[e], torch.bfloat16).T + down.bias[e]
            return out

        return run


def works(layers: list[Layer], batch: int, count: int) -> list[Work]:
    """`count` batches over the layers in turn, each routed at random."""
    made = []
    for i in range(count):
        layer = layers[i % len(layers)]
        experts = layer.up.num_experts
        ids, _ = _routing.route(drawn(31 * batch + i, batch, experts, dtype=torch.float32), TOP_K)
        loads = torch.zeros(experts, dtype=torch.int64, device=stopwatch.DEVICE)
        slot_of = torch.arange(experts, dtype=torch.int32, device=stopwatch.DEVICE)
        x = drawn(batch + i, batch, HIDDEN)
        made.append(Work(layer, x, ids, slot_of, loads, _schedule.arrange(ids, slot_of, loads)))
    return made


def rows(until: float) -> Iterator[dict[str, Any]]:
    """Rows of the record, one after another, until the clock (time.monotonic) says `until`."""
    copy, matmul = copy_tb_s(), matmul_tflop_s(8192, 8192, 8192)
    yield {"case": "copy", "value": round(copy, 3), "unit": "TB/s"}
    yield {"case": "bf16 matmul of the vendor's library", "value": round(matmul, 1), "unit": "TFLOP/s"}
    for name, experts, held in MODELS:
        layers = [Layer.random(seed, experts) for seed in range(held)]
        for batch in BATCHES:
            if time.monotonic() > until:
                yield {"case": f"{name} batch {batch} and more", "skipped": "the time given was over"}
                break
            yield from one_batch(f"{name} batch {batch}", layers, batch, copy, matmul)
        del layers
        torch.cuda.empty_cache()


def one_batch(case: str, layers: list[Layer], batch: int, copy: float, matmul: float) -> Iterator[dict[str, Any]]:
    made = works(layers, batch, WORKS if batch <= 256 else 4)
    us = microseconds([work.experts for work in made])
    hit = sum(work.hit() for work in made) / len(made)
    tb_s = hit * EXPERT_BYTES / us / 1e6
    tflop_s = batch * TOP_K * HIDDEN * HIDDEN * 3 * 2 / us / 1e6
    yield {
        "case": f"{case}, experts", "value": round(us, 2), "unit": "us", "hit": round(hit, 1), "tb_s": round(tb_s, 3),
        "of_copy": round(tb_s / copy, 3), "tflop_s": round(tflop_s, 2), "of_matmul": round(tflop_s / matmul, 4),
    }  # fmt: skip
    yield {"case": f"{case}, order", "value": round(microseconds([w.arrange for w in made]), 2), "unit": "us"}
    memory: dict[str, Any] = {
        "case": f"{case}, packed bytes", "value": round(tb_s, 3), "unit": "TB/s", "peer": "copy",
        "peer_value": round(copy, 3), "ratio": round(tb_s / copy, 3),
    }  # fmt: skip
    if 4 <= batch <= 64:
        memory |= {"goal": DECODE_GOAL_TB_S, "met": tb_s >= DECODE_GOAL_TB_S}
    yield memory
    if batch >= 128:
        per_expert = max(batch * TOP_K // layers[0].up.num_experts, 1)
        rate = matmul_tflop_s(max(per_expert, 16) * 8, 2 * HIDDEN, HIDDEN)
        arithmetic: dict[str, Any] = {
            "case": f"{case}, arithmetic", "value": round(tflop_s, 1), "unit": "TFLOP/s", "peer": "torch.matmul bf16",
            "peer_value": round(rate, 1), "ratio": round(tflop_s / rate, 3),
        }  # fmt: skip
        if batch >= 4096:
            arithmetic |= {"goal": PREFILL_GOAL, "met": tflop_s / rate >= PREFILL_GOAL}
        yield arithmetic
    if batch in BASELINE_BATCHES:
        other = eager_microseconds(made[0].baseline())
        yield {
            "case": f"{case}, dequantise then matmul", "value": round(us, 2), "unit": "us", "peer": "torch",
            "peer_value": round(other, 2), "ratio": round(other / us, 2),
        }  # fmt: skip

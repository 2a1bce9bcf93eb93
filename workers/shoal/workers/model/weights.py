"""A rank's weights: every dense tensor, and its own experts only.

Dense tensors keep the published bf16 values, experts the published MXFP4 codes, both in the order in which this device
reads them fastest. Experts are stacked in slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.kernels import dense, moe_matmul
from shoal.kernels.attention_block import BlockWeights
from shoal.kernels.fragments import LARGEST_SCALE
from shoal.kernels.mxfp4 import GROUP, ExpertWeights
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.timing import Stopwatch

PARTS = ("blocks", "scales", "bias")
"""Of a projection's experts, in files and in memory."""

AT_ONCE = 16 << 20
"""Bytes of experts that are read and brought into order at a time. That much memory a process keeps and uses again."""

FREE = -1
"""Id of a slot that holds no expert."""


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """One layer's choice of experts."""

    norm: Tensor  # [H]
    weight: dense.Weight  # [E, H]
    bias: Tensor  # [E]


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """The experts of one layer that this rank holds, in slot order; a slot may be FREE."""

    ids: tuple[int, ...]
    gate_up: moe_matmul.Weights  # [slots, 2I, H], gate and up rows interleaved
    down: moe_matmul.Weights  # [slots, H, I]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Every tensor, [slots, ...] each: one slot of all of them is one expert."""
        return tuple(tensor for w in (self.gate_up, self.down) for tensor in (w.blocks, w.scales, w.bias))

    def empty(self, slots: int) -> LayerExperts:
        """As many free slots of the same kind."""
        return LayerExperts((FREE,) * slots, slots_like(self.gate_up, slots), slots_like(self.down, slots))


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """What every rank holds."""

    embedding: Tensor  # [V, H]
    unembedding: dense.Weight  # [V, H]
    norm: Tensor  # [H]
    attention: tuple[BlockWeights, ...]
    routers: tuple[RouterWeights, ...]


def load_dense(checkpoint: WeightSource, device: torch.device, watch: Stopwatch | None = None) -> DenseWeights:
    """Read every tensor that is not an expert. Raises CheckpointError. `watch` learns what reading and preparing
    took."""
    watch = watch or Stopwatch()

    def tensor(*names: str) -> Tensor:
        """One tensor, or several one below the other."""
        with watch.phase("read"):
            parts = [checkpoint.tensor(name).to(device) for name in names]
            return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()

    def matrix(*names: str) -> dense.Weight:
        read = tensor(*names)
        with watch.phase("prepare"):
            return dense.prepare(read)

    def vector(name: str) -> Tensor:
        """A norm's weights or the sinks, widened once (exactly) rather than in every step."""
        return tensor(name).float()

    attention, routers = [], []
    for layer in range(checkpoint.config.num_layers):
        base = f"model.layers.{layer}."
        qkv = [f"{base}self_attn.{x}_proj" for x in "qkv"]
        attention.append(
            BlockWeights(
                norm=vector(base + "input_layernorm.weight"),
                qkv=matrix(*(f"{name}.weight" for name in qkv)),
                qkv_bias=tensor(*(f"{name}.bias" for name in qkv)),
                sinks=vector(base + "self_attn.sinks"),
                out=matrix(base + "self_attn.o_proj.weight"),
                out_bias=tensor(base + "self_attn.o_proj.bias"),
            )
        )
        routers.append(
            RouterWeights(
                norm=vector(base + "post_attention_layernorm.weight"),
                weight=matrix(base + "mlp.router.weight"),
                bias=tensor(base + "mlp.router.bias"),
            )
        )
    return DenseWeights(
        embedding=tensor("model.embed_tokens.weight"),
        unembedding=matrix("lm_head.weight"),
        norm=vector("model.norm.weight"),
        attention=tuple(attention),
        routers=tuple(routers),
    )


def load_experts(
    checkpoint: WeightSource,
    layer: int,
    ids: Sequence[int],
    device: torch.device,
    spare_slots: int = 0,
    *,
    int8: bool = False,
    watch: Stopwatch | None = None,
) -> LayerExperts:
    """Read only the byte ranges of experts `ids` of `layer`, with free slots behind them. Raises CheckpointError.

    `int8` prepares them for activations of 8 bits. A few experts at a time are read and brought into the device's
    order, on the device, by several threads: reading and ordering overlap, and little memory is needed beside the
    experts' own. `watch`: as for `load_dense`.
    """
    slots, watch = len(ids) + spare_slots, watch or Stopwatch()

    def expert_weights(projection: str, busy: Stopwatch) -> moe_matmul.Weights:
        names = [f"model.layers.{layer}.mlp.experts.{projection}_{part}" for part in PARTS]

        def prepared(some: Sequence[int]) -> moe_matmul.Weights:
            with busy.phase("read"):
                read = ExpertWeights(*(checkpoint.experts(name, some).to(device) for name in names))
            with busy.phase("prepare"):
                try:
                    return moe_matmul.prepare(read, int8=int8)
                except ValueError as error:  # numbers that this device's order of bytes cannot hold
                    raise CheckpointError("checkpoint", str(error), tensor=names[1]) from error

        def fill(first: int) -> None:
            some = ids[first : first + at_once]
            new = prepared(some)
            with busy.phase("prepare"):
                put(whole, range(first, first + len(some)), new)

        begun = prepared(ids[:1])
        at_once = max(1, AT_ONCE // max(1, begun.blocks[:1].nbytes))
        whole = slots_like(begun, slots)
        put(whole, range(len(ids[:1])), begun)
        list(pool.map(fill, range(1, len(ids), at_once)))
        return whole

    with watch.shared() as busy, ThreadPoolExecutor(_threads(device)) as pool:
        parts = [expert_weights(projection, busy) for projection in ("gate_up_proj", "down_proj")]
    return LayerExperts((*ids, *([FREE] * spare_slots)), *parts)


def _threads(device: torch.device) -> int:
    """Two keep a GPU's bus and its kernels busy; on a CPU there are as many as the worker was given."""
    return torch.get_num_threads() if device.type == "cpu" else 2


def slots_like(weights: moe_matmul.Weights, count: int) -> moe_matmul.Weights:
    """`count` empty slots for experts of this kind."""

    def empty(tensor: Tensor) -> Tensor:
        return tensor.new_zeros(count, *tensor.shape[1:])

    return replace(weights, blocks=empty(weights.blocks), scales=empty(weights.scales), bias=empty(weights.bias))


def put(into: moe_matmul.Weights, slots: Iterable[int], experts: moe_matmul.Weights) -> None:
    """Copy the first of `experts` to these slots of `into`."""
    for i, slot in enumerate(slots):
        into.blocks[slot].copy_(experts.blocks[i])
        into.scales[slot].copy_(experts.scales[i])
        into.bias[slot].copy_(experts.bias[i])


def sample_expert(config: ModelConfig, device: torch.device, *, int8: bool = False) -> LayerExperts:
    """One made-up expert in one slot, laid out as `load_experts` does it: two workers whose samples have the same bytes
    can use each other's experts."""

    def pattern(*shape: int) -> Tensor:
        return torch.arange(math.prod(shape), device=device).remainder(251).to(torch.uint8).view(1, *shape)

    def projection(rows: int, columns: int) -> moe_matmul.Weights:
        groups = columns // GROUP
        bias = pattern(rows).to(torch.bfloat16)
        scales = pattern(rows, groups).remainder(LARGEST_SCALE)
        parts = pattern(rows, groups, GROUP // 2), scales, bias
        return moe_matmul.prepare(ExpertWeights(*parts), int8=int8)

    hidden, inner = config.hidden_size, config.intermediate_size
    return LayerExperts((FREE,), projection(2 * inner, hidden), projection(hidden, inner))


def expert_bytes(config: ModelConfig) -> int:
    """Packed bytes of one expert: blocks, scales and bf16 biases of both projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = 2 * inner * hidden + hidden * inner
    return weights // 2 + weights // 32 + 2 * (2 * inner + hidden)

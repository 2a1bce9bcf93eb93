"""A rank's weights: every dense tensor, and its own experts only.

Dense tensors keep the published bf16 values, experts the published MXFP4 codes, both in the order in which this device
reads them fastest. Experts are stacked in slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels import dense, moe_matmul
from shoal.kernels.attention_block import BlockWeights
from shoal.kernels.mxfp4 import ExpertWeights
from shoal.workers.checkpoint.source import WeightSource
from shoal.workers.model.config import ModelConfig

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


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """What every rank holds."""

    embedding: Tensor  # [V, H]
    unembedding: dense.Weight  # [V, H]
    norm: Tensor  # [H]
    attention: tuple[BlockWeights, ...]
    routers: tuple[RouterWeights, ...]


def load_dense(checkpoint: WeightSource, device: torch.device) -> DenseWeights:
    """Read every tensor that is not an expert. Raises CheckpointError."""

    def tensor(name: str) -> Tensor:
        return checkpoint.tensor(name).to(device).contiguous()

    def matrix(name: str) -> dense.Weight:
        return dense.prepare(tensor(name))

    def vector(name: str) -> Tensor:
        """A norm's weights or the sinks, widened once (exactly) rather than in every step."""
        return tensor(name).float()

    attention, routers = [], []
    for layer in range(checkpoint.config.num_layers):
        base = f"model.layers.{layer}."
        parts = [checkpoint.tensor(f"{base}self_attn.{x}_proj.weight") for x in "qkv"]
        biases = [checkpoint.tensor(f"{base}self_attn.{x}_proj.bias") for x in "qkv"]
        attention.append(
            BlockWeights(
                norm=vector(base + "input_layernorm.weight"),
                qkv=dense.prepare(torch.cat(parts).to(device)),
                qkv_bias=torch.cat(biases).to(device),
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
) -> LayerExperts:
    """Read only the byte ranges of experts `ids` of `layer`, with free slots behind them. Raises CheckpointError.

    `int8` prepares them for activations of 8 bits.
    """

    def tensor(name: str) -> Tensor:
        read = checkpoint.experts(f"model.layers.{layer}.mlp.experts.{name}", ids)
        if spare_slots:
            read = torch.cat([read, read.new_zeros(spare_slots, *read.shape[1:])])
        return read.to(device)

    def expert_weights(projection: str) -> moe_matmul.Weights:
        parts = [tensor(f"{projection}_{part}") for part in ("blocks", "scales", "bias")]
        return moe_matmul.prepare(ExpertWeights(*parts), int8=int8)

    return LayerExperts((*ids, *([FREE] * spare_slots)), expert_weights("gate_up_proj"), expert_weights("down_proj"))


def expert_bytes(config: ModelConfig) -> int:
    """Packed bytes of one expert: blocks, scales and bf16 biases of both projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = 2 * inner * hidden + hidden * inner
    return weights // 2 + weights // 32 + 2 * (2 * inner + hidden)

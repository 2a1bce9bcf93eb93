"""GPT-OSS, layer by layer: `gpt_oss/torch/model.py` says the same with other words.

    x = embed(token)
    for each layer:
        x += out(attention(rope(qkv(norm(x))), sinks, window of this layer))
        x += sum over the chosen experts of weight * expert(norm(x))
    logits = unembed(norm(x))

The residual stream has the activation dtype; every row is bitwise independent of the other rows in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.kernels import attention as attn
from shoal.kernels import rope, routing
from shoal.kernels.attention_block import BlockWeights, attention_block
from shoal.kernels.native import forward as native_forward
from shoal.kernels.native.forward import PHASES
from shoal.kernels.norm_linear import norm_linear
from shoal.kernels.target import Target
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.fusion import fuse
from shoal.workers.model.kv_cache import KvCache
from shoal.workers.model.moe import ExpertLayer
from shoal.workers.model.timing import Stopwatch
from shoal.workers.model.weights import DenseWeights


@dataclass(frozen=True, slots=True)
class KvPlace:
    """Where one kind of layer reads and writes."""

    slots: Tensor  # [T] int64, where each token's key and value go
    batch: attn.AttentionBatch


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One step's tokens of this rank, all sequences end to end. Zero tokens are allowed: the rank then only serves
    its experts to the others."""

    ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, place of each token in its sequence
    full: KvPlace  # of full-attention layers
    sliding: KvPlace  # of sliding layers
    logit_rows: Tensor  # [L] int64, tokens whose logits are wanted


class Stream(NamedTuple):
    """The residual stream between two layers."""

    x: Tensor  # [T, H]
    normed: Tensor | None  # [T, H]: what the next layer's attention reads, if the kernel that made x has left it too


@dataclass(frozen=True, slots=True)
class Routed:
    """Tokens on their way to a layer's experts."""

    x_dp: Tensor  # [T, H] the residual stream
    t_dp: Tensor  # [T, H] what the experts read
    ids_dp: Tensor  # [T, k] int32 the chosen ones
    weights_dp: Tensor  # [T, k] fp32 their weights


class Model:
    """Dense weights, the layers' experts and the KV cache of one rank."""

    def __init__(self, config: ModelConfig, target: Target, weights: DenseWeights, kv: KvCache, max_context: int):
        self.config = config
        self.target = target
        self.weights = weights
        self.kv = kv
        self._experts: tuple[ExpertLayer, ...] = ()
        self._fused: native_forward.Forward | None = None
        self.stopwatch = Stopwatch()
        self._block = attn.BlockShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.rms_eps, config.attention_scale
        )
        r = config.rope
        self._rope = rope.rope_tables(
            r.theta, r.factor, r.beta_fast, r.beta_slow, r.original_context, r.concentration, config.head_dim,
            max_context, target.device,
        )  # fmt: skip

    @property
    def experts(self) -> tuple[ExpertLayer, ...]:
        """Every layer's experts in the epoch that serves."""
        return self._experts

    @experts.setter
    def experts(self, layers: tuple[ExpertLayer, ...]) -> None:
        self._experts = layers
        alone = self.target.backend == "native" and bool(layers) and all(layer.alone for layer in layers)
        self._fused = fuse(self.config, self.weights, layers, self.kv, self._block, self._rope) if alone else None

    @torch.inference_mode()
    def forward(self, step: ModelInput, kv: KvCache | None = None) -> Tensor:
        """Write the step's keys and values and return logits [L, V] fp32 of the wanted rows.

        `kv` takes the place of the model's own cache. Raises ExchangeError when a rank fails in the middle; the step
        then never happened.
        """
        assert len(self.experts) == self.config.num_layers, "no experts yet: join a group first"
        if self._fused is not None and kv is None:
            logits, seconds = self._fused(step.ids, step.positions, step.full, step.sliding, step.logit_rows)
            for phase, spent in zip(PHASES, seconds, strict=True):
                self.stopwatch.seconds[phase] += spent
            return logits
        return self.forward_split(step, kv or self.kv)

    @torch.inference_mode()
    def forward_split(self, step: ModelInput, kv: KvCache) -> Tensor:
        """The same layer by layer, tokens exchanged with the other ranks; the same bits."""
        watch = self.stopwatch
        stream = self.embed(step.ids)
        for layer, experts in enumerate(self.experts):
            routed = self.to_experts(layer, stream, step, kv, watch)
            rows_dp = experts(routed.t_dp, routed.ids_dp, watch)
            stream = self.from_experts(layer, routed, rows_dp, watch)
        return self.unembed(stream.x, step.logit_rows)

    def embed(self, ids: Tensor) -> Stream:
        """ids [T] -> [T, H], the beginning of the residual stream."""
        return Stream(self.weights.embedding[ids].to(self.target.dtype), None)

    def to_experts(
        self, layer: int, stream: Stream, step: ModelInput, kv: KvCache, watch: Stopwatch, live: Tensor | None = None
    ) -> Routed:
        """The layer's half before the exchange: attention, norm, router, choice of experts.

        Rows from `live` [1] on only fill the step up and choose none.
        """
        with watch.phase("attention"):
            x_dp = self._attention(layer, self.weights.attention[layer], stream, step, kv)
        router = self.weights.routers[layer]
        with watch.phase("routing"):
            t_dp, logits = norm_linear(x_dp, router.norm, self.config.rms_eps, router.weight, router.bias)
            return Routed(x_dp, t_dp, *routing.route(logits, self.config.experts_per_token, live))

    def from_experts(self, layer: int, routed: Routed, rows_dp: Tensor, watch: Stopwatch) -> Stream:
        """The half after it: rows_dp [T, k, H], weighted and added to the residual stream."""
        following = self.weights.attention[layer + 1 : layer + 2]
        with watch.phase("routing"):
            if self.target.backend == "native" or not following:  # a CPU's attention norms what it reads by itself
                return Stream(routing.combine(rows_dp, routed.weights_dp, routed.x_dp), None)
            norm = following[0].norm
            return Stream(*routing.combine_normed(rows_dp, routed.weights_dp, routed.x_dp, norm, self.config.rms_eps))

    @torch.inference_mode()
    def unembed(self, x_dp: Tensor, rows: Tensor | None = None) -> Tensor:
        """[T, H] -> logits fp32 [L, V] of `rows` i64 [L], or of all."""
        w = self.weights
        with self.stopwatch.phase("unembedding"):
            return norm_linear(x_dp, w.norm, self.config.rms_eps, w.unembedding, None, rows=rows)[1]

    def _attention(self, layer: int, weights: BlockWeights, stream: Stream, step: ModelInput, kv: KvCache) -> Tensor:
        """[T, H] -> [T, H], the residual included; causal, windowed on sliding layers."""
        window = self.config.layer_windows[layer]
        place = step.full if window is None else step.sliding
        cache = kv.keys[layer], kv.values[layer]
        return attention_block(
            stream.x, weights, self._block, self._rope, step.positions, cache, place.slots, place.batch, window,
            stream.normed,
        )  # fmt: skip

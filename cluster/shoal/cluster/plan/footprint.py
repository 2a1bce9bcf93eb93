"""Bytes and operations of a model, from its shape: what the weights take, what a step must read and multiply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from shoal.workers.checkpoint.layout import hf_specs, is_expert_tensor, stored_bytes
from shoal.workers.model.config import ModelConfig

_EMBEDDING, _UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)  # slots would leave no room for what is computed once
class Footprint:
    """The arithmetic of one shape. Bytes are those of the published tensors; activations and KV are bf16."""

    config: ModelConfig
    kv_itemsize: int = 2

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {spec.name: stored_bytes(spec) for spec in hf_specs(self.config)}

    @cached_property
    def checkpoint_bytes(self) -> int:
        """All tensors."""
        return sum(self._sizes.values())

    @cached_property
    def embedding_bytes(self) -> int:
        """Held, but read a row at a time."""
        return self._sizes[_EMBEDDING]

    @cached_property
    def unembedding_bytes(self) -> int:
        """Read in every step, as the embedding is not."""
        return self._sizes[_UNEMBEDDING]

    @cached_property
    def expert_bytes(self) -> int:
        """One expert of one layer: blocks, scales and biases of both projections."""
        return self.experts_bytes // (self.config.num_layers * self.config.num_experts)

    @cached_property
    def experts_bytes(self) -> int:
        """All experts of all layers."""
        return sum(size for name, size in self._sizes.items() if is_expert_tensor(name))

    @cached_property
    def dense_bytes(self) -> int:
        """Attention, routers and norms of all layers, which every token reads."""
        return self.checkpoint_bytes - self.experts_bytes - self.embedding_bytes - self.unembedding_bytes

    @cached_property
    def widened_bytes(self) -> int:
        """What a worker adds by keeping norms and sinks in fp32."""
        c = self.config
        return 2 * ((2 * c.num_layers + 1) * c.hidden_size + c.num_layers * c.num_heads)

    @property
    def full_layers(self) -> int:
        """Layers whose attention reads everything."""
        return sum(window is None for window in self.config.layer_windows)

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.config.kv_size * self.kv_itemsize

    @cached_property
    def active_parameters(self) -> int:
        """Weights that multiply each token, without the unembedding; biases and norms are counted as one each."""
        c = self.config
        expert = 3 * c.hidden_size * c.intermediate_size
        return self.dense_bytes // 2 + c.num_layers * c.experts_per_token * expert

    @property
    def unembedding_parameters(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    def kv_read(self, context: int) -> int:
        """KV bytes that one sequence of `context` tokens reads in a decode step."""
        return self.kv_token_bytes * int(self._visible(context))

    def attention_flops(self, context: float) -> float:
        """Scores and values of one token that may see `context` others."""
        return 4 * self.config.q_size * self._visible(context)

    def decode_flops(self, context: int) -> float:
        """Of one token of one sequence, its logits included."""
        return 2 * (self.active_parameters + self.unembedding_parameters) + self.attention_flops(context)

    def prefill_flops(self, prompt: int) -> float:
        """Of one prompt token, the mean over the prompt; logits of the last one alone."""
        return 2 * self.active_parameters + self.attention_flops(prompt / 2)

    def _visible(self, context: float) -> float:
        """Tokens read, over all layers."""
        return sum(context if window is None else min(context, window) for window in self.config.layer_windows)

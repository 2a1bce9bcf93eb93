"""transformers' GPT-OSS in the shape of shoal-nano, with the parts that are slow on CPUs replaced by equal ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shoal.cluster.checkpoint import side_files
from shoal.cluster.checkpoint.presets import Preset
from shoal.cluster.nano import attention, experts
from shoal.cluster.nano.start import start

ALL_EXPERTS_FUNCTIONS.register(experts.NAME, experts.sorted_experts)
ALL_ATTENTION_FUNCTIONS.register(attention.NAME, attention.fused_attention)


def hf_config(preset: Preset) -> GptOssConfig:
    """transformers' configuration of the shape, unquantised."""
    keys: dict[str, Any] = {**side_files.hf_config(preset)}
    for key in ("quantization_config", "architectures", "model_type"):
        keys.pop(key)
    return GptOssConfig(**keys)


class Head(nn.Module):
    """Unembedding whose rows are a part of their own and a shared linear image of the embedding.

    The shared part makes copying a thing to be learned once and not for every token; `folded` makes it one matrix.
    """

    def __init__(self, weight: nn.Parameter, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = weight
        self.share = nn.Parameter(torch.zeros(weight.shape[1], weight.shape[1]))
        self._embedding = (embedding,)  # in a tuple: its parameters are not ours

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., V]. The embedding itself does not learn from here."""
        image = self._embedding[0].weight.detach() @ self.share
        return nn.functional.linear(x, self.weight + image)


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters as transformers' model has them: the head as one matrix."""
    plain = dict(weights)
    plain["lm_head.weight"] = plain["lm_head.weight"] + plain["model.embed_tokens.weight"] @ plain.pop("lm_head.share")
    return plain


def build(preset: Preset, seed: int) -> GptOssForCausalLM:
    """A fresh model in float32; `start` says how its weights begin."""
    torch.manual_seed(seed)
    config = hf_config(preset)
    config._attn_implementation = attention.NAME
    config._experts_implementation = experts.NAME
    model: GptOssForCausalLM = GptOssForCausalLM(config)  # float32 is its default
    model.lm_head = Head(model.lm_head.weight, model.model.embed_tokens)
    start(model)
    return model


def hidden_states(model: GptOssForCausalLM, ids: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """ids i64 [T] of sequences of these lengths -> last hidden states [T, H], router logits [T, E] per layer."""
    masks = {
        "full_attention": attention.Spans(lengths, None),
        "sliding_attention": attention.Spans(lengths, model.config.sliding_window),
    }
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    out = model.model(
        input_ids=ids[None], attention_mask=masks, position_ids=positions, use_cache=False, output_router_logits=True
    )
    return out.last_hidden_state[0], out.router_logits


def imbalance(router_logits: tuple[Tensor, ...], k: int) -> tuple[Tensor, Tensor]:
    """The Switch loss of each layer, averaged (1 when even), and the share of the choices per layer and expert [n, E].

    Args:
        router_logits: [T, E] per layer.
    """
    losses, loads = [], []
    for logits in router_logits:
        chosen = torch.zeros_like(logits).scatter_(1, logits.topk(k, dim=-1).indices, 1.0).mean(0) / k
        losses.append((chosen * logits.softmax(-1).mean(0)).sum() * logits.shape[1])
        loads.append(chosen)
    return torch.stack(losses).mean(), torch.stack(loads)


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


logging.getLogger("transformers").setLevel(logging.ERROR)

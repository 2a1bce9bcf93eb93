"""How the weights start: ordinary random matrices, and the parts of copying laid out in advance.

Repeating what was said ("induction") needs one layer that knows the token before each place and a later one that looks
for it. From random weights a model this small waits a thousand steps for that to happen by chance; from here it took
150. Nothing is frozen: training moves all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import GptOssForCausalLM

_POSITION_BIAS = 6.0
_POSITION_PAIRS = 4  # of the fastest rotary frequencies; slower ones cannot tell neighbours apart
_COPY_GAIN = 0.5
_SHARED_HEAD = 0.1
_OWN_HEAD = 0.1


@torch.no_grad()
def start(model: GptOssForCausalLM) -> None:
    """Fills in every parameter, from torch's own generator. Matrices get unit gain over the depth."""
    config = model.config
    depth = math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name.endswith("sinks"):
            parameter.zero_()
        elif "experts" in name:
            parameter.normal_(0, parameter.shape[1] ** -0.5 / (depth if "down" in name else 1))
        elif "embed_tokens" in name:
            parameter.normal_(0, 0.5)
        elif "lm_head.weight" in name:
            parameter.normal_(0, _OWN_HEAD * parameter.shape[1] ** -0.5)
        elif parameter.dim() == 2:
            parameter.normal_(0, (0.5 if "router" in name else 1.0) * parameter.shape[1] ** -0.5)
    model.lm_head.share.copy_(_SHARED_HEAD * torch.eye(config.hidden_size))
    for layer in model.model.layers:
        _write_what_is_read(layer.self_attn, config.num_attention_heads // config.num_key_value_heads, config.head_dim)
    look_back(model.model.layers[0].self_attn, model.model.rotary_emb.inv_freq, config)


def _write_what_is_read(attention: torch.nn.Module, queries: int, size: int) -> None:
    """Every head puts back what its values were made of, so that attending to a token is copying it."""
    values: Tensor = attention.get_parameter("v_proj.weight")
    written: Tensor = attention.get_parameter("o_proj.weight")
    for head in range(written.shape[1] // size):
        group = head // queries
        written[:, head * size : (head + 1) * size] = _COPY_GAIN * values[group * size : (group + 1) * size].T


def look_back(attention: torch.nn.Module, frequencies: Tensor, config: object) -> None:
    """The query heads of the first KV head attend to 0, 1, 2, ... tokens before, by their biases alone.

    A bias is turned by the rotary embedding as everything is: a key's constant vector and a query's, turned by the
    angle of `n` places, agree best `n` places apart.

    Args:
        frequencies: f32 [d / 2], radians per place, fastest first.
        config: with head_dim, num_attention_heads and num_key_value_heads.
    """
    size: int = config.head_dim  # type: ignore[attr-defined]  # transformers' configuration is untyped
    queries: int = config.num_attention_heads // config.num_key_value_heads  # type: ignore[attr-defined]
    key, key_bias = (attention.get_parameter(f"k_proj.{name}") for name in ("weight", "bias"))
    query, query_bias = (attention.get_parameter(f"q_proj.{name}") for name in ("weight", "bias"))
    for pair in range(min(_POSITION_PAIRS, size // 4)):
        first, second = pair, pair + size // 2
        key[[first, second]] = 0.0
        key_bias[first] = _POSITION_BIAS
        for places in range(queries):
            angle = float(frequencies[pair]) * places
            head = places * size
            query[[head + first, head + second]] = 0.0
            query_bias[head + first] = _POSITION_BIAS * math.cos(angle)
            query_bias[head + second] = -_POSITION_BIAS * math.sin(angle)

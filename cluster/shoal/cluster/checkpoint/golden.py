"""The slow twin: GPT-OSS in plain fp32 torch, layer by layer, one expert at a time; and the golden logits it gives.

It shares no arithmetic with the code that serves: a fault there cannot hide here. Source of the mathematics:
`gpt_oss/torch/model.py` of openai/gpt-oss, and the OCP MX specification for the experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shoal.workers.checkpoint import Checkpoint
from shoal.workers.model.config import ModelConfig
from shoal.workers.model.golden import Golden

COLUMNS = 64
"""Ids of the vocabulary whose logits are kept; the log-sum-exp covers the others."""

MOST_TOKENS = 512

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def make_golden(checkpoint: Checkpoint, progress: Callable[[int, int], None] = lambda done, total: None) -> Golden:
    """Logits of a prompt that meets every expert of every layer, or is MOST_TOKENS long. Raises CheckpointError."""
    count = 64
    while True:
        draws = np.random.Generator(np.random.Philox(key=11))
        tokens = draws.integers(0, checkpoint.config.vocab_size, count).tolist()
        logits, met = forward(checkpoint, tokens, progress)
        if met == checkpoint.config.num_layers * checkpoint.config.num_experts or count >= MOST_TOKENS:
            break
        count *= 2
    columns = torch.from_numpy(
        np.sort(draws.permutation(checkpoint.config.vocab_size)[: min(COLUMNS, checkpoint.config.vocab_size)])
    )
    return Golden(tuple(tokens), columns, logits[:, columns], torch.logsumexp(logits.double(), -1).float())


@torch.inference_mode()
def forward(
    checkpoint: Checkpoint, tokens: list[int], progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Tensor, int]:
    """Logits [T, V] after each token of one prompt, and how many of all layers' experts it met."""
    c = checkpoint.config

    def tensor(name: str) -> Tensor:
        return checkpoint.tensor(name).float()

    cos, sin = _rope(c, len(tokens))
    x = tensor("model.embed_tokens.weight")[tokens]
    met = 0
    for layer in range(c.num_layers):
        base = f"model.layers.{layer}."
        t = _norm(x, tensor(base + "input_layernorm.weight"), c.rms_eps)
        q, k, v = (
            functional.linear(t, tensor(f"{base}self_attn.{n}_proj.weight"), tensor(f"{base}self_attn.{n}_proj.bias"))
            for n in "qkv"
        )
        heads = _attention(c, q, k, v, tensor(base + "self_attn.sinks"), c.layer_windows[layer], cos, sin)
        x = x + functional.linear(
            heads, tensor(base + "self_attn.o_proj.weight"), tensor(base + "self_attn.o_proj.bias")
        )
        t = _norm(x, tensor(base + "post_attention_layernorm.weight"), c.rms_eps)
        router = functional.linear(t, tensor(base + "mlp.router.weight"), tensor(base + "mlp.router.bias"))
        best = torch.topk(router, c.experts_per_token, dim=-1)
        shares = torch.softmax(best.values, -1)
        for expert in sorted(set(best.indices.flatten().tolist())):
            rows, place = torch.where(best.indices == expert)
            x[rows] = x[rows] + shares[rows, place, None] * _expert(checkpoint, layer, expert, t[rows])
            met += 1
        progress(layer + 1, c.num_layers)
    t = _norm(x, tensor("model.norm.weight"), c.rms_eps)
    return functional.linear(t, tensor("lm_head.weight")), met


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rope(c: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, head_dim / 2] of YaRN: slow pairs are interpolated, fast ones not, those between partly."""
    r, half = c.rope, c.head_dim // 2
    period = r.theta ** (torch.arange(0, c.head_dim, 2).double() / c.head_dim)

    def pair_with(turns: float) -> float:
        return half * math.log(r.original_context / (turns * 2 * math.pi)) / math.log(r.theta)

    if r.factor > 1.0:
        low, high = pair_with(r.beta_fast), pair_with(r.beta_slow)
        slow = ((torch.arange(half).double() - low) / (high - low)).clamp(0, 1)
        turn = slow / (r.factor * period) + (1 - slow) / period
    else:
        turn = 1 / period
    angle = torch.arange(length).double()[:, None] * turn
    return (angle.cos() * r.concentration).float(), (angle.sin() * r.concentration).float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, head_dim]: the first half of a head is turned with the second."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _attention(
    c: ModelConfig, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None, cos: Tensor, sin: Tensor
) -> Tensor:
    """[T, heads * head_dim]. A sink is one more key per head, whose value is nothing."""
    T, group = q.shape[0], c.num_heads // c.num_kv_heads
    q = _rotate(q.view(T, c.num_heads, c.head_dim), cos, sin)
    k = _rotate(k.view(T, c.num_kv_heads, c.head_dim), cos, sin).repeat_interleave(group, 1)
    v = v.view(T, c.num_kv_heads, c.head_dim).repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(c.head_dim)
    distance = torch.arange(T)[:, None] - torch.arange(T)[None]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(hidden, -math.inf)
    scores = torch.cat([scores, sinks.view(-1, 1, 1).expand(-1, T, 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :-1], v).reshape(T, -1)


def _expert(checkpoint: Checkpoint, layer: int, expert: int, t: Tensor) -> Tensor:
    c, base = checkpoint.config, f"model.layers.{layer}.mlp.experts."

    def linear(name: str, x: Tensor) -> Tensor:
        parts = ("blocks", "scales", "bias")
        blocks, scales, bias = (checkpoint.experts(f"{base}{name}_{part}", [expert])[0] for part in parts)
        codes = torch.stack([blocks & 15, blocks >> 4], -1).long()
        values = _E2M1[codes & 7] * (1.0 - 2.0 * (codes > 7))
        weight = values.flatten(-2) * torch.exp2(scales.float() - 127.0)[..., None]
        return functional.linear(x, weight.flatten(-2), bias.float())

    h = linear("gate_up_proj", t)
    gate, up = h[:, ::2].clamp(max=c.swiglu_limit), h[:, 1::2].clamp(-c.swiglu_limit, c.swiglu_limit)
    return linear("down_proj", gate * torch.sigmoid(c.swiglu_alpha * gate) * (up + 1))

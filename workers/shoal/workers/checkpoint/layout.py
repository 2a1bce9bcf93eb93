"""Which tensors a GPT-OSS checkpoint holds, under which names, in which shapes: both published layouts.

Hugging Face: `model.layers.N.…`, as transformers' `GptOssForCausalLM` names them. OpenAI: `block.N.…`, as
`gpt_oss.torch.weights` does; there q, k and v are one tensor, rows in that order. The rest of shoal knows only the
Hugging Face names. Expert tensors hold all experts of a layer along dimension 0; the rows of gate and up interleave.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from shoal.workers.model.config import ModelConfig

Layout = Literal["hf", "original"]

GROUP = 32  # values that share one scale in MXFP4
GROUP_BYTES = 16  # two values a byte

DENSE = ("BF16",)
NORM = ("BF16", "F32")  # the published files hold bf16; OpenAI's own code declares fp32
PACKED = ("U8",)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor must be: `dtypes` lists what is accepted, what is published first."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an HF-named tensor lies in the original layout: rows [first, last) of dimension 0, or all of it."""

    name: str
    rows: tuple[int, int] | None = None


def hf_specs(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the Hugging Face layout: 19 per layer and 3 more."""
    hidden, vocab = config.hidden_size, config.vocab_size
    specs = [TensorSpec("model.embed_tokens.weight", (vocab, hidden), DENSE)]
    for layer in range(config.num_layers):
        specs += _layer_specs(config, f"model.layers.{layer}.")
    specs.append(TensorSpec("model.norm.weight", (hidden,), NORM))
    specs.append(TensorSpec("lm_head.weight", (vocab, hidden), DENSE))
    return specs


def _layer_specs(config: ModelConfig, prefix: str) -> list[TensorSpec]:
    hidden, experts, inner = config.hidden_size, config.num_experts, config.intermediate_size
    specs = [
        TensorSpec(f"{prefix}input_layernorm.weight", (hidden,), NORM),
        TensorSpec(f"{prefix}post_attention_layernorm.weight", (hidden,), NORM),
        TensorSpec(f"{prefix}self_attn.sinks", (config.num_heads,), DENSE),
        TensorSpec(f"{prefix}mlp.router.weight", (experts, hidden), DENSE),
        TensorSpec(f"{prefix}mlp.router.bias", (experts,), DENSE),
    ]
    for part, rows, columns in (
        ("q", config.q_size, hidden),
        ("k", config.kv_size, hidden),
        ("v", config.kv_size, hidden),
        ("o", hidden, config.q_size),
    ):
        specs.append(TensorSpec(f"{prefix}self_attn.{part}_proj.weight", (rows, columns), DENSE))
        specs.append(TensorSpec(f"{prefix}self_attn.{part}_proj.bias", (rows,), DENSE))
    for part, rows, columns in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
        groups = columns // GROUP
        name = f"{prefix}mlp.experts.{part}_proj"
        specs.append(TensorSpec(f"{name}_blocks", (experts, rows, groups, GROUP_BYTES), PACKED))
        specs.append(TensorSpec(f"{name}_scales", (experts, rows, groups), PACKED))
        specs.append(TensorSpec(f"{name}_bias", (experts, rows), DENSE))
    return specs


_WHOLE = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "unembedding.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": "attn.norm.scale",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "self_attn.sinks": "attn.sinks",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
}


def original_source(name: str, config: ModelConfig) -> Source:
    """Where the tensor that Hugging Face calls `name` lies in OpenAI's layout. Pure."""
    if name in _WHOLE:
        return Source(_WHOLE[name])
    _, _, layer, rest = name.split(".", 3)
    block = f"block.{layer}."
    if rest in _IN_LAYER:
        return Source(block + _IN_LAYER[rest])
    q, kv = config.q_size, config.kv_size
    rows = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
    _, projection, kind = rest.split(".")
    return Source(f"{block}attn.qkv.{kind}", rows[projection])


def original_specs(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of OpenAI's layout: those of `hf_specs`, with q, k and v joined."""
    merged: dict[str, TensorSpec] = {}
    for spec in hf_specs(config):
        source = original_source(spec.name, config)
        shape = spec.shape if source.rows is None else (config.q_size + 2 * config.kv_size, *spec.shape[1:])
        merged.setdefault(source.name, TensorSpec(source.name, shape, spec.dtypes))
    return list(merged.values())


def stored_bytes(spec: TensorSpec) -> int:
    """Bytes of the tensor in the dtype that it is published in."""
    return prod(spec.shape) * (1 if spec.dtypes == PACKED else 2)


def is_expert_tensor(name: str) -> bool:
    """Whether dimension 0 of the HF-named tensor counts experts, so that a rank reads only its slices."""
    return ".mlp.experts." in name


def is_scale_tensor(name: str) -> bool:
    """Whether the HF-named tensor holds E8M0 scales, in which the byte 255 means NaN."""
    return name.endswith("_scales")

"""The small JSON files of a checkpoint directory, with the keys of the published ones."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.cluster.checkpoint.presets import Preset
from shoal.workers.checkpoint.config_file import ARCHITECTURE, MODEL_TYPE
from shoal.workers.checkpoint.layout import TensorSpec


def hf_config(preset: Preset) -> dict[str, object]:
    """config.json of the Hugging Face layout, every key of the published file in its order."""
    rope = preset.rope
    kinds = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(preset.num_layers)]
    end, pad = preset.eos_token_ids[:2]
    return {
        "architectures": [ARCHITECTURE],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": end,
        "experts_per_token": preset.experts_per_token,
        "head_dim": preset.head_dim,
        "hidden_act": "silu",
        "hidden_size": preset.hidden_size,
        "initial_context_length": rope.original_context,
        "initializer_range": 0.02,
        "intermediate_size": preset.intermediate_size,
        "layer_types": kinds,
        "max_position_embeddings": preset.max_context,
        "model_type": MODEL_TYPE,
        "num_attention_heads": preset.num_heads,
        "num_experts_per_tok": preset.experts_per_token,
        "num_hidden_layers": preset.num_layers,
        "num_key_value_heads": preset.num_kv_heads,
        "num_local_experts": preset.num_experts,
        "output_router_logits": False,
        "pad_token_id": pad,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": preset.rms_eps,
        "rope_scaling": {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_context,
            "rope_type": "yarn",
            "truncate": rope.truncate,
        },
        "rope_theta": rope.theta,
        "router_aux_loss_coef": 0.9,
        "sliding_window": preset.sliding_window,
        "swiglu_limit": preset.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": preset.vocab_size,
    }


def original_config(preset: Preset) -> dict[str, object]:
    """config.json of OpenAI's layout: the fields of its `ModelConfig`."""
    return {
        "num_hidden_layers": preset.num_layers,
        "num_experts": preset.num_experts,
        "experts_per_token": preset.experts_per_token,
        "vocab_size": preset.vocab_size,
        "hidden_size": preset.hidden_size,
        "intermediate_size": preset.intermediate_size,
        "swiglu_limit": preset.swiglu_limit,
        "head_dim": preset.head_dim,
        "num_attention_heads": preset.num_heads,
        "num_key_value_heads": preset.num_kv_heads,
        "sliding_window": preset.sliding_window,
        "initial_context_length": preset.rope.original_context,
        "rope_theta": preset.rope.theta,
        "rope_scaling_factor": preset.rope.factor,
        "rope_ntk_alpha": preset.rope.beta_slow,
        "rope_ntk_beta": preset.rope.beta_fast,
    }


def original_dtypes(specs: list[TensorSpec]) -> dict[str, object]:
    """dtypes.json of OpenAI's layout: what the bytes of each tensor mean."""
    labels = {".blocks": "FP4", ".scales": "UE8"}
    return {spec.name: labels.get(spec.name[-7:], spec.dtypes[0]) for spec in specs}


def generation_config(preset: Preset) -> dict[str, object]:
    """generation_config.json: every id that ends a generation."""
    return {
        "bos_token_id": preset.control_base,
        "do_sample": True,
        "eos_token_id": list(preset.eos_token_ids),
        "pad_token_id": preset.eos_token_ids[1],
    }


def tokenizer_config(preset: Preset) -> dict[str, object]:
    """tokenizer_config.json: enough for transformers' AutoTokenizer."""
    return {
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|return|>",
        "model_max_length": preset.max_context,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def index(placed: Mapping[str, str], total_size: int) -> dict[str, object]:
    """model.safetensors.index.json: `placed` maps tensors to file names, `total_size` counts tensor bytes."""
    return {"metadata": {"total_size": total_size}, "weight_map": {name: placed[name] for name in sorted(placed)}}


def synthetic_readme(preset: Preset, seed: int) -> str:
    """README.md of a directory of synthetic weights."""
    return f"""# Synthetic weights: answers are noise

Made by `shoal checkpoint make --preset {preset.name} --synthetic --seed {seed}`: seeded random bytes in the exact
shapes of the preset, with realistic scales. Good for measuring speed, memory and start-up at full size. Nothing was
trained: whatever this model says is noise.
"""

"""`config.json` of both layouts, read into a `ModelConfig`; nothing half-understood is let through.

Hugging Face: transformers' `GptOssConfig` of version 4 (`rope_scaling` and `rope_theta`) and 5 (`rope_parameters`,
with `rope_theta` inside). OpenAI: `gpt_oss.torch.model.ModelConfig`. A key that would change the mathematics in a way
that shoal does not implement is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.layout import GROUP, Layout
from shoal.workers.model.config import ModelConfig, RopeConfig

ARCHITECTURE = "GptOssForCausalLM"
MODEL_TYPE = "gpt_oss"
PUBLISHED_VOCABULARY = 201088
PUBLISHED_EOS = (200002, 199999, 200012)  # <|return|>, <|endoftext|>, <|call|>

_MOST = 1 << 24  # of anything counted: keeps what follows small, whatever the file says
_MOST_LAYERS = 1024
_REQUIRED: object = object()


class _Table:
    """The keys of one JSON object, read with their types and ranges; errors name the file and the key."""

    def __init__(self, path: Path, table: Mapping[str, object], inside: str = "") -> None:
        self.path = path
        self.table = table
        self.inside = inside

    def wrong(self, key: str, expected: object, found: object) -> CheckpointError:
        return CheckpointError(self.path, f"key {self.inside}{key}", expected=expected, found=found)

    def value(self, key: str, default: object = _REQUIRED) -> object:
        """The value; the default where the key is absent or null."""
        value = self.table.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.wrong(key, "a value", "nothing")
        return default

    def integer(self, key: str, default: object = _REQUIRED, *, low: int = 1, high: int = _MOST) -> int:
        value = self.value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}", value)
        return value

    def number(self, key: str, default: object = _REQUIRED, *, low: float = 0.0) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < 1e12:
            raise self.wrong(key, f"a number above {low:g}", value)
        return float(value)

    def must_be(self, key: str, needed: object) -> None:
        """Refuses any other value; an absent key means the needed one."""
        value = self.value(key, needed)
        if value != needed or type(value) is not type(needed):
            raise self.wrong(key, repr(needed), repr(value))


def layout_of(table: Mapping[str, object], path: Path) -> Layout:
    """Which layout a config.json describes. Raises CheckpointError for another architecture."""
    kind, names = table.get("model_type"), table.get("architectures")
    if kind is None and names is None:
        if "num_experts" in table and "experts_per_token" in table:
            return "original"
        raise CheckpointError(path, "unknown architecture", expected=f"model_type {MODEL_TYPE}", found="none")
    if kind is not None and kind != MODEL_TYPE:
        raise CheckpointError(path, "unknown architecture", expected=f"model_type {MODEL_TYPE}", found=kind)
    if names is not None and (not isinstance(names, list) or ARCHITECTURE not in names):
        raise CheckpointError(path, "unknown architecture", expected=ARCHITECTURE, found=names)
    return "hf"


def parse_config(table: Mapping[str, object], generation: Mapping[str, object], path: Path) -> ModelConfig:
    """The model that a config.json describes. Pure.

    Args:
        table: the content of config.json, of either layout.
        generation: the content of generation_config.json, empty when there is none; only its `eos_token_id` is read.
        path: named in errors.

    Raises:
        CheckpointError: a key is missing, of the wrong type, out of range, or asks for what shoal does not compute.
    """
    keys = _Table(path, table)
    original = layout_of(table, path) == "original"
    if not original:
        _refuse_what_is_not_computed(keys)
    layers = keys.integer("num_hidden_layers", high=_MOST_LAYERS)
    heads = keys.integer("num_attention_heads")
    kv_heads = keys.integer("num_key_value_heads", heads)
    hidden = keys.integer("hidden_size")
    vocabulary = keys.integer("vocab_size")
    experts = keys.integer("num_experts" if original else "num_local_experts")
    rope = _original_rope(keys) if original else _rope(keys)
    default_context = min(int(rope.original_context * rope.factor), _MOST)
    config = ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_experts=experts,
        experts_per_token=keys.integer("experts_per_token" if original else "num_experts_per_tok", high=experts),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=keys.integer("head_dim", hidden // heads),
        vocab_size=vocabulary,
        layer_windows=_windows(keys, layers),
        rope=rope,
        max_context=default_context if original else keys.integer("max_position_embeddings", default_context),
        rms_eps=keys.number("rms_norm_eps", 1e-5),
        swiglu_limit=keys.number("swiglu_limit", 7.0),
        eos_token_ids=_eos(keys, generation, vocabulary),
        swiglu_alpha=keys.number("swiglu_alpha", 1.702),
    )
    if heads % kv_heads:
        raise keys.wrong("num_key_value_heads", f"a divisor of num_attention_heads {heads}", kv_heads)
    if config.head_dim % 2:
        raise keys.wrong("head_dim", "an even number (it is rotated in halves)", config.head_dim)
    for key, size in (("hidden_size", hidden), ("intermediate_size", config.intermediate_size)):
        if size % GROUP:
            raise keys.wrong(key, f"a multiple of {GROUP} (values that share a scale)", size)
    return config


def _refuse_what_is_not_computed(keys: _Table) -> None:
    keys.must_be("hidden_act", "silu")
    keys.must_be("attention_bias", True)
    keys.must_be("tie_word_embeddings", False)
    quantization = keys.value("quantization_config", {})
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != "mxfp4":
        raise keys.wrong("quantization_config.quant_method", "mxfp4", method)


def _rope(keys: _Table) -> RopeConfig:
    name = "rope_parameters" if keys.value("rope_parameters", None) is not None else "rope_scaling"
    table = keys.value(name, None)
    if table is None:  # transformers' own default is the published one
        return RopeConfig(theta=keys.number("rope_theta", 150000.0))
    if not isinstance(table, dict):
        raise keys.wrong(name, "an object", table)
    inner = _Table(keys.path, table, f"{name}.")
    kind = inner.value("rope_type", inner.value("type", "yarn"))
    if kind != "yarn":
        raise inner.wrong("rope_type", "yarn", kind)
    if inner.value("truncate", True) is not False:  # in transformers, absent means true
        raise inner.wrong("truncate", "false", table.get("truncate", "nothing, which means true"))
    for key in ("attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor"):
        if inner.value(key, None) is not None:
            raise inner.wrong(key, "nothing", table[key])
    return RopeConfig(
        theta=inner.number("rope_theta", keys.value("rope_theta", 150000.0)),
        factor=inner.number("factor"),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        original_context=inner.integer(
            "original_max_position_embeddings", keys.value("initial_context_length", _REQUIRED)
        ),
    )


def _original_rope(keys: _Table) -> RopeConfig:
    return RopeConfig(
        theta=keys.number("rope_theta", 150000.0),
        factor=keys.number("rope_scaling_factor", 32.0),
        beta_fast=keys.number("rope_ntk_beta", 32.0),
        beta_slow=keys.number("rope_ntk_alpha", 1.0),
        original_context=keys.integer("initial_context_length", 4096),
    )


def _windows(keys: _Table, layers: int) -> tuple[int | None, ...]:
    """Keys that each layer's queries see; without `layer_types` they alternate, sliding first."""
    types = keys.value("layer_types", None)
    if types is None:
        types = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise keys.wrong("layer_types", f"a list of {layers}", types)
    for item in types:
        if item not in ("sliding_attention", "full_attention"):
            raise keys.wrong("layer_types", "sliding_attention or full_attention", item)
    if "sliding_attention" not in types:
        return (None,) * layers
    window = keys.integer("sliding_window")
    return tuple(window if item == "sliding_attention" else None for item in types)


def _eos(keys: _Table, generation: Mapping[str, object], vocabulary: int) -> tuple[int, ...]:
    """generation_config.json, then config.json, then what was published for the published vocabulary."""
    found = generation.get("eos_token_id")
    if found is None:
        found = keys.value("eos_token_id", PUBLISHED_EOS if vocabulary == PUBLISHED_VOCABULARY else _REQUIRED)
    ids: Sequence[object] = found if isinstance(found, list | tuple) else [found]
    result = []
    for item in ids:
        if type(item) is not int or not 0 <= item < vocabulary:
            raise keys.wrong("eos_token_id", f"ids from 0 to {vocabulary - 1}", item)
        result.append(item)
    if not result:
        raise keys.wrong("eos_token_id", "at least one id", "none")
    return tuple(dict.fromkeys(result))

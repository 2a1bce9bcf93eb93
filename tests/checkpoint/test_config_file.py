"""`shoal.workers.checkpoint.config_file`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.checkpoint import side_files
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.workers.checkpoint.config_file import PUBLISHED_EOS, layout_of, parse_config
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.model.config import ModelConfig
from tests.checkpoint.broken import JSON, error_of

PATH = Path("config.json")
HF: dict[str, Any] = side_files.hf_config(PRESETS["20b"])
ORIGINAL: dict[str, Any] = side_files.original_config(PRESETS["20b"])
GENERATION = side_files.generation_config(PRESETS["20b"])


def _parse(table: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    return parse_config(table, GENERATION if generation is None else generation, PATH)


def test_layouts_say_the_same() -> None:
    """Both published files of the 20b describe one model, that of the preset."""
    assert PRESETS["20b"].config() == _parse(HF) == _parse(ORIGINAL)


def test_reads_what_transformers_writes(tmp_path: Path) -> None:
    """A config.json saved by transformers 5, with `rope_parameters`, describes the same model."""
    config = transformers.GptOssConfig(**HF)
    config.architectures = ["GptOssForCausalLM"]
    config.save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in table
    assert _parse(HF) == _parse(table)


@pytest.mark.parametrize(
    "key", ["swiglu_limit", "layer_types", "rope_scaling", "head_dim", "rms_norm_eps", "architectures"]
)
def test_defaults(key: str) -> None:
    """Keys that older files lack have the published values (`head_dim`: what it would be without the key)."""
    table = {**HF, "num_attention_heads": 45, "num_key_value_heads": 9}
    expected = _parse({**table, "head_dim": 64})
    assert expected == _parse({name: value for name, value in table.items() if name != key})


def test_original_defaults() -> None:
    """OpenAI's file may lack `swiglu_limit`."""
    assert _parse(ORIGINAL) == _parse({key: value for key, value in ORIGINAL.items() if key != "swiglu_limit"})


def test_ends_of_a_turn() -> None:
    """generation_config.json comes first, then config.json, then what was published for the published vocabulary."""
    assert _parse(HF, {"eos_token_id": [5, 6, 5]}).eos_token_ids == (5, 6)
    assert _parse(HF, {"eos_token_id": 7}).eos_token_ids == (7,)
    assert _parse(HF, {}).eos_token_ids == (200002,)
    assert _parse(ORIGINAL, {}).eos_token_ids == PUBLISHED_EOS


def test_layer_kinds_may_be_any() -> None:
    """`layer_types` is followed layer by layer; without sliding layers no window is needed."""
    kinds = ["full_attention", "sliding_attention"]
    table = {**HF, "num_hidden_layers": 2, "layer_types": kinds, "sliding_window": 5}
    assert _parse(table).layer_windows == (None, 5)
    full = {**table, "layer_types": ["full_attention"] * 2, "sliding_window": None}
    assert _parse(full).layer_windows == (None, None)


ROPE = HF["rope_scaling"]
WRONG = [
    ("model_type", "llama"),
    ("architectures", ["LlamaForCausalLM"]),
    ("hidden_act", "gelu"),
    ("attention_bias", False),
    ("tie_word_embeddings", True),
    ("quantization_config", None),
    ("quantization_config", {"quant_method": "bitsandbytes"}),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", None),
    ("num_hidden_layers", True),
    ("num_hidden_layers", "24"),
    ("hidden_size", 2881),
    ("intermediate_size", 100),
    ("head_dim", 63),
    ("num_key_value_heads", 7),
    ("num_experts_per_tok", 33),
    ("num_local_experts", None),
    ("vocab_size", -1),
    ("layer_types", ["sliding_attention"]),
    ("layer_types", ["linear_attention"] * 24),
    ("sliding_window", None),
    ("rms_norm_eps", "small"),
    ("swiglu_limit", float("nan")),
    ("swiglu_limit", float("inf")),
    ("swiglu_limit", -7.0),
    ("swiglu_limit", 10**400),
    ("rope_scaling", "yarn"),
    ("rope_scaling", {**ROPE, "rope_type": "linear"}),
    ("rope_scaling", {**ROPE, "truncate": True}),
    ("rope_scaling", {key: value for key, value in ROPE.items() if key != "truncate"}),
    ("rope_scaling", {**ROPE, "attention_factor": 1.0}),
    ("rope_scaling", {**ROPE, "factor": None}),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key}={str(value)[:30]}" for key, value in WRONG])
def test_refuses_what_it_would_get_wrong(key: str, value: object) -> None:
    """A missing, malformed or unsupported value is one error naming the file, and the key or the architecture."""
    with pytest.raises(CheckpointError, match=r"config\.json: (key |unknown architecture)") as caught:
        _parse({**HF, key: value})
    assert key in str(caught.value) or "unknown architecture" in str(caught.value)


@pytest.mark.parametrize("eos", [201088, -1, "end", [], [True]])
def test_refuses_ends_beyond_the_vocabulary(eos: object) -> None:
    """An end of turn that no token can be is refused."""
    with pytest.raises(CheckpointError, match="eos_token_id"):
        _parse(HF, {"eos_token_id": eos})


def test_unknown_architecture() -> None:
    """A config.json of neither layout is refused as an unknown architecture."""
    with pytest.raises(CheckpointError, match="unknown architecture: expected model_type gpt_oss, found none"):
        layout_of({"hidden_size": 1}, PATH)


@given(st.sampled_from([HF, ORIGINAL]).flatmap(lambda t: st.tuples(st.just(t), st.sampled_from(sorted(t)), JSON)))
def test_any_value_gives_a_config_or_the_error(case: tuple[dict[str, Any], str, object]) -> None:
    """Whatever stands at a key, parsing ends in a config or in CheckpointError."""
    table, key, value = case
    error = error_of(lambda: _parse({**table, key: value}))
    assert error is None or str(error).startswith("config.json: ")


@given(JSON, st.sampled_from(sorted(ROPE)))
def test_any_rope_gives_a_config_or_the_error(value: object, key: str) -> None:
    """The same for the keys of the rotary embedding."""
    error = error_of(lambda: _parse({**HF, "rope_parameters": {**ROPE, key: value}}))
    assert error is None or "rope" in str(error)

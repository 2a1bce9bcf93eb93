"""`shoal.cluster.checkpoint.side_files`; test_config_file parses them back, test_make has transformers load them."""

from __future__ import annotations

from shoal.cluster.checkpoint import side_files
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.workers.checkpoint.layout import original_specs


def test_layers_alternate_sliding_first() -> None:
    """`layer_types` starts with a sliding layer, as published."""
    kinds = side_files.hf_config(PRESETS["20b"])["layer_types"]
    assert kinds == ["sliding_attention", "full_attention"] * 12


def test_labels_the_packed_tensors() -> None:
    """dtypes.json calls the blocks FP4, the scales UE8 and everything else bf16."""
    labels = side_files.original_dtypes(original_specs(PRESETS["tiny"].config()))
    assert labels["block.0.mlp.mlp1_weight.blocks"] == "FP4"
    assert labels["block.0.mlp.mlp2_weight.scales"] == "UE8"
    assert labels["norm.scale"] == "BF16"


def test_index_counts_tensors_only() -> None:
    """The index maps names to files and holds the bytes of tensors, as its readers expect."""
    table = side_files.index({"b": "2.safetensors", "a": "1.safetensors"}, 7)
    assert table == {"metadata": {"total_size": 7}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}

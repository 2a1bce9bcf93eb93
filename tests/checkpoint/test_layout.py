"""`shoal.workers.checkpoint.layout`."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.checkpoint.shards import nbytes
from shoal.workers.checkpoint.layout import hf_specs, is_expert_tensor, is_scale_tensor, original_source, original_specs


@pytest.mark.parametrize(("preset", "tensors", "size"), [("20b", 459, 13_761_264_768), ("120b", 687, 65_248_815_744)])
def test_has_the_published_size(preset: str, tensors: int, size: int) -> None:
    """The two published models have the published number of tensors and of bytes, in both layouts."""
    config = PRESETS[preset].config()
    assert tensors == len(hf_specs(config))
    assert size == sum(map(nbytes, hf_specs(config)))
    assert size == sum(map(nbytes, original_specs(config)))


@pytest.mark.parametrize(("preset", "count"), [("20b", 20_914_757_184), ("120b", 116_829_156_672)])
def test_has_the_published_parameters(preset: str, count: int) -> None:
    """The two published models have the published number of parameters."""
    values = 0
    for spec in hf_specs(PRESETS[preset].config()):
        values += 0 if is_scale_tensor(spec.name) else prod(spec.shape) * (2 if spec.name.endswith("_blocks") else 1)
    assert count == values


def test_has_the_published_shapes() -> None:
    """Names, shapes and dtypes of a layer of the 20b are those of the published file."""
    specs = {spec.name: (spec.shape, spec.dtypes[0]) for spec in hf_specs(PRESETS["20b"].config())}
    layer = "model.layers.23."
    expected = {
        f"{layer}self_attn.q_proj.weight": ((4096, 2880), "BF16"),
        f"{layer}self_attn.v_proj.bias": ((512,), "BF16"),
        f"{layer}self_attn.o_proj.weight": ((2880, 4096), "BF16"),
        f"{layer}self_attn.sinks": ((64,), "BF16"),
        f"{layer}mlp.router.weight": ((32, 2880), "BF16"),
        f"{layer}mlp.experts.gate_up_proj_blocks": ((32, 5760, 90, 16), "U8"),
        f"{layer}mlp.experts.gate_up_proj_scales": ((32, 5760, 90), "U8"),
        f"{layer}mlp.experts.gate_up_proj_bias": ((32, 5760), "BF16"),
        f"{layer}mlp.experts.down_proj_blocks": ((32, 2880, 90, 16), "U8"),
        f"{layer}mlp.experts.down_proj_bias": ((32, 2880), "BF16"),
        "lm_head.weight": ((201088, 2880), "BF16"),
    }
    assert expected == {name: specs[name] for name in expected}


def test_joins_q_k_and_v_without_a_gap() -> None:
    """Every row of every tensor of the original layout belongs to exactly one tensor of the other."""
    config = PRESETS["tiny"].config()
    rows: dict[str, list[tuple[int, int]]] = {}
    for spec in hf_specs(config):
        source = original_source(spec.name, config)
        rows.setdefault(source.name, []).append(source.rows or (0, spec.shape[0]))
    for spec in original_specs(config):
        ends = [0, *(last for _, last in sorted(rows[spec.name]))]
        assert sorted(rows.pop(spec.name)) == list(pairwise(ends))
        assert ends[-1] == spec.shape[0]
    assert not rows


def test_experts_lie_along_dimension_0() -> None:
    """What is read by expert has one slice per expert; the router is not among it."""
    config = PRESETS["tiny"].config()
    experts = [spec for spec in hf_specs(config) if is_expert_tensor(spec.name)]
    assert len(experts) == 6 * config.num_layers
    assert {config.num_experts} == {spec.shape[0] for spec in experts}

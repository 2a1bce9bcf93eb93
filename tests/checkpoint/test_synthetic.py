"""`shoal.workers.checkpoint.synthetic`: noise of full size, the same on a disk and in memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.checkpoint.presets import PRESETS
from shoal.cluster.checkpoint.shards import nbytes, plan_shards
from shoal.kernels import mxfp4
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.checkpoint.layout import TensorSpec, hf_specs, is_expert_tensor
from shoal.workers.checkpoint.synthetic import VERSION, SyntheticWeights, fill, pieces, spread
from shoal.workers.model.model import ModelInput
from shoal.workers.model.weights import load_experts
from tests.checkpoint.broken import MICRO
from tests.workers.engines import engine_of, random_tokens, run, sequence

LARGE = {spec.name: spec for spec in hf_specs(PRESETS["120b"].config())}
EXPERT = "model.layers.35.mlp.experts.gate_up_proj"
MASK = 0xFFFFFFFF


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model's shape, synthetic, in several files."""
    path = tmp_path_factory.mktemp("synthetic") / "micro"
    return make_checkpoint(path, MICRO, seed=5, synthetic=True, largest_shard=20_000)


def test_files_and_memory_agree_bit_by_bit(made: Path) -> None:
    """Every tensor, and every expert by itself, is the same read from the disk and made in memory."""
    memory = SyntheticWeights(MICRO.config(), seed=5)
    with open_checkpoint(made) as checkpoint:
        for spec in hf_specs(MICRO.config()):
            stored = checkpoint.tensor(spec.name)
            assert torch.equal(stored, memory.tensor(spec.name)), spec.name
            if is_expert_tensor(spec.name):
                assert torch.equal(stored[[3, 1, 2]], memory.experts(spec.name, [3, 1, 2])), spec.name


def test_both_layouts_hold_the_same(made: Path, tmp_path: Path) -> None:
    """OpenAI's layout has the same weights under its own names."""
    other = make_checkpoint(tmp_path / "original", MICRO, seed=5, layout="original", synthetic=True)
    with open_checkpoint(made) as ours, open_checkpoint(other) as theirs:
        for name in ours.slices:
            assert torch.equal(ours.tensor(name), theirs.tensor(name)), name


def by_hand(name: str, seed: int, position: int) -> int:
    """The hash of one position in plain Python integers."""
    key = hashlib.sha256(f"{VERSION} {seed} {name}".encode()).digest()
    x = position ^ int.from_bytes(key[:4], "little")
    x = x * 0x9E3779B1 & MASK
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x ^= int.from_bytes(key[4:8], "little")
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


@given(first=st.integers(0, 2**27), seed=st.integers(0, 2**40))
def test_the_hash_is_what_integers_say(first: int, seed: int) -> None:
    """Wrapping products and shifts of a tensor are those of whole numbers, at any place of the largest tensor."""
    spec, out = LARGE[EXPERT + "_blocks"], torch.empty(16, dtype=torch.uint8)
    fill(out, spec, seed, first * 4)
    expected = b"".join(by_hand(spec.name, seed, first + i).to_bytes(4, "little") for i in range(4))
    assert expected == bytes(out.tolist())
    weight, row = LARGE["lm_head.weight"], torch.empty(3, dtype=torch.bfloat16)
    fill(row, weight, seed, first)
    for i, value in enumerate(row.tolist()):
        total = sum(by_hand(weight.name, seed, first + i).to_bytes(4, "little")) - 510
        assert value == pytest.approx(total / 147.8 * 2.0 * 2880**-0.5, rel=0.005)


def test_a_part_does_not_depend_on_its_neighbours() -> None:
    """However a tensor is cut, its values are the same: beyond the number that is hashed at once, too."""
    spec = LARGE["lm_head.weight"]
    whole = torch.empty(100_000, dtype=torch.bfloat16)
    fill(whole, spec, 1, first=7)
    for first, last in ((0, 1), (32_760, 32_770), (65_000, 99_999)):
        part = torch.empty(last - first, dtype=torch.bfloat16)
        fill(part, spec, 1, 7 + first)
        assert torch.equal(whole[first:last], part)


def test_full_size_has_the_published_header() -> None:
    """Names, shapes and dtypes of 20b and 120b, their tensor bytes and numbers of tensors and shards, as published."""
    for preset, count, total in (("20b", 459, 13_761_264_768), ("120b", 687, 65_248_815_744)):
        specs = hf_specs(PRESETS[preset].config())
        assert (count, total) == (len(specs), sum(map(nbytes, specs)))
        named = {spec.name: (spec.dtypes[0], spec.shape) for spec in specs}
        experts = 32 if preset == "20b" else 128
        assert named["model.embed_tokens.weight"] == named["lm_head.weight"] == ("BF16", (201088, 2880))
        layer = "model.layers.23."
        published = {
            "self_attn.q_proj.weight": ("BF16", (4096, 2880)),
            "self_attn.k_proj.weight": ("BF16", (512, 2880)),
            "self_attn.o_proj.weight": ("BF16", (2880, 4096)),
            "self_attn.sinks": ("BF16", (64,)),
            "mlp.router.weight": ("BF16", (experts, 2880)),
            "mlp.experts.gate_up_proj_blocks": ("U8", (experts, 5760, 90, 16)),
            "mlp.experts.gate_up_proj_scales": ("U8", (experts, 5760, 90)),
            "mlp.experts.gate_up_proj_bias": ("BF16", (experts, 5760)),
            "mlp.experts.down_proj_blocks": ("U8", (experts, 2880, 90, 16)),
            "mlp.experts.down_proj_scales": ("U8", (experts, 2880, 90)),
            "mlp.experts.down_proj_bias": ("BF16", (experts, 2880)),
        }
        assert published == {name: named[layer + name] for name in published}
    assert len(plan_shards(hf_specs(PRESETS["20b"].config()), "hf")) == 3
    assert sum(piece.last - piece.first for piece in pieces(PRESETS["120b"].config())) == 65_248_815_744


def test_scales_are_those_of_trained_checkpoints() -> None:
    """118 to 121 at full width, inside the range seen in the published 20b; codes use all sixteen values alike."""
    scales = torch.empty(1 << 16, dtype=torch.uint8)
    fill(scales, LARGE[EXPERT + "_scales"], 0)
    assert torch.unique(scales).tolist() == [118, 119, 120, 121]
    blocks = torch.empty(1 << 20, dtype=torch.uint8)
    fill(blocks, LARGE[EXPERT + "_blocks"], 0)
    counts = torch.bincount(torch.cat((blocks & 15, blocks >> 4)).int(), minlength=16).double()
    assert float((counts / counts.mean() - 1).abs().max()) < 0.02


@pytest.mark.parametrize("preset", ["tiny", "small", "20b", "120b"])
def test_rows_keep_their_gain(preset: str) -> None:
    """The spread of every kind of weight is the wanted one: nearly for bf16, to half a power of two for MXFP4."""
    specs = {spec.name: spec for spec in hf_specs(PRESETS[preset].config())}
    for part in ("gate_up_proj", "down_proj"):
        name = f"model.layers.1.mlp.experts.{part}"
        groups = specs[name + "_scales"].shape[-1]
        blocks, scales = torch.empty(64 * groups, 16, dtype=torch.uint8), torch.empty(64 * groups, dtype=torch.uint8)
        fill(blocks, specs[name + "_blocks"], 0)
        fill(scales, specs[name + "_scales"], 0)
        found = float(mxfp4.dequantize(blocks, scales, torch.float32).std())
        assert 0.7 < found / spread(name, groups * 32).deviation < 1.42
    for name in ("lm_head.weight", "model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.router.weight"):
        values = torch.empty(20_000, dtype=torch.bfloat16)
        fill(values, specs[name], 0)
        wanted = spread(name, specs[name].shape[-1]).deviation
        assert float(values.float().std()) == pytest.approx(wanted, rel=0.03)
        assert abs(float(values.float().mean())) < wanted * 0.05


def test_seeds_and_tensors_differ() -> None:
    """Another seed or another tensor is other noise, and has another name."""
    a, b = (SyntheticWeights(MICRO.config(), seed) for seed in (0, 1))
    name = "model.layers.0.self_attn.{}_proj.weight"
    assert not torch.equal(a.tensor(name.format("k")), b.tensor(name.format("k")))
    assert not torch.equal(a.tensor(name.format("k")), a.tensor(name.format("v")))
    assert a.fingerprint != b.fingerprint
    assert a.fingerprint == SyntheticWeights(MICRO.config()).fingerprint


def test_a_rank_makes_its_own_experts_alone() -> None:
    """What is not asked for is not made: bytes are those of the ids."""
    memory = SyntheticWeights(MICRO.config())
    load_experts(memory, 1, [2], torch.device("cpu"))
    one = sum(nbytes(spec) // 4 for spec in hf_specs(MICRO.config()) if is_expert_tensor(spec.name)) // 2
    assert one == memory.bytes_read


def test_an_engine_says_the_same_from_both(tmp_path: Path) -> None:
    """Tokens of an engine over the files are those of an engine over memory."""
    prompt, path = random_tokens(9, 250, seed=3), make_checkpoint(tmp_path / "tiny", "tiny", seed=5, synthetic=True)
    from_memory = engine_of(SyntheticWeights(PRESETS["tiny"].config(), seed=5), kv_tokens=64)
    with open_checkpoint(path) as checkpoint:
        from_disk = engine_of(checkpoint, kv_tokens=64)
    assert run(from_memory, sequence(prompt)) == run(from_disk, sequence(prompt))


def test_activations_stay_in_range_through_36_layers() -> None:
    """As deep as 120b, narrower: logits are finite and spread like those of a model that decides."""
    deep = replace(PRESETS["tiny"], name="deep", num_layers=36)
    engine = engine_of(SyntheticWeights(deep.config()), kv_tokens=64)
    forward, seen = engine.model.forward, []

    def watched(step: ModelInput) -> torch.Tensor:
        seen.append(forward(step))
        return seen[-1]

    with mock.patch.object(engine.model, "forward", watched):
        run(engine, sequence(random_tokens(30, 1000, seed=0), max_tokens=4))
    logits = torch.cat(seen)
    assert bool(torch.isfinite(logits).all())
    assert 0.5 < float(logits.std()) < 10


def test_a_directory_says_that_its_answers_are_noise(made: Path) -> None:
    """Whoever finds it is told, with the command that made it."""
    text = (made / "README.md").read_text()
    assert "answers are noise" in text
    assert "--synthetic --seed 5" in text


def test_a_tensor_too_long_for_a_key_is_our_mistake() -> None:
    """Positions have 31 bits: more would repeat."""
    spec = TensorSpec("lm_head.weight", (1 << 31, 1), ("BF16",))
    with pytest.raises(AssertionError, match="more words"):
        fill(torch.empty(2, dtype=torch.bfloat16), spec, 0, (1 << 31) - 2)

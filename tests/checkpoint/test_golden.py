"""Golden logits come from other code than serves; whoever computes anything else does not serve."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cluster.checkpoint.golden import forward, make_golden
from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.placement import even_placement
from shoal.kernels import sampling
from shoal.workers.checkpoint import CheckpointError, open_checkpoint
from shoal.workers.config import WorkerConfig
from shoal.workers.errors import UnfitError
from shoal.workers.experts.exchange import LocalExchange
from shoal.workers.experts.group import GroupSpec, Member
from shoal.workers.model import golden
from shoal.workers.selftest import SelfTest
from shoal.workers.worker import Worker
from tests.workers.engines import make_engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with its golden logits."""
    path = make_checkpoint(tmp_path_factory.mktemp("golden") / "model", "tiny", seed=3)
    with open_checkpoint(path) as checkpoint:
        make_golden(checkpoint).save(path / golden.NAME, checkpoint.fingerprint)
    return path


def load(path: Path) -> golden.Golden:
    """The file of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        return golden.load(path / golden.NAME, checkpoint.fingerprint)


def test_the_twin_agrees_with_transformers(model: Path) -> None:
    """Two oracles of different make: largest difference 1e-3 on logits of a few units."""
    from transformers import AutoModelForCausalLM, Mxfp4Config  # type: ignore[attr-defined]  # made when it is asked for

    made = load(model)
    theirs = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True), local_files_only=True
    )
    with open_checkpoint(model) as checkpoint, torch.inference_mode():
        ours, met = forward(checkpoint, list(made.tokens))
        expected = theirs(torch.tensor([made.tokens])).logits[0]
        assert (ours - expected).abs().max() < 1e-3
        assert met == checkpoint.config.num_layers * checkpoint.config.num_experts, "an expert was never asked"


def test_a_sound_model_passes(model: Path) -> None:
    """The serving code in fp32 gives the twin's logits but for rounding."""
    SelfTest(make_engine(model).model, load(model)).run(LocalExchange(), 0)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("expert", [0, 5])
def test_a_corrupted_expert_fails(model: Path, layer: int, expert: int) -> None:
    """A few bytes of one expert, anywhere, in memory: readiness is refused."""
    engine = make_engine(model)
    held = engine.model.experts[layer].held
    slot = held.ids.index(expert)
    blocks = held.down.blocks[slot]
    blocks.view(-1)[: blocks.numel() // 16] ^= 0x77
    with pytest.raises(UnfitError, match="golden logits are missed"):
        SelfTest(engine.model, load(model)).run(LocalExchange(), 0)


def test_what_changes_while_serving_is_found_by_the_canary(model: Path) -> None:
    """The same test again, with other bits than the first time, even where no golden logits are there."""
    engine = make_engine(model)
    test = SelfTest(engine.model, None)
    test.run(LocalExchange(), 0)
    test.run(LocalExchange(), 1)
    engine.model.experts[2].held.gate_up.scales.view(-1)[:4096] ^= 1
    with pytest.raises(UnfitError, match="not those of earlier epochs"):
        test.run(LocalExchange(), 2)


@pytest.mark.parametrize("way", ["greedily", "as the first of one", "as the least share", "behind a mask"])
def test_a_sampler_that_chooses_wrongly_does_not_serve(model: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Where tokens are chosen on the device and one kind of choice gives another token; a sound one serves."""
    test = SelfTest(make_engine(model, sampler="device").model, load(model))
    test.run(LocalExchange(), 0)
    asked, sound = iter(["greedily", "as the first of one", "as the least share", "behind a mask"]), sampling.sample

    def wrong(*arguments: Any, **options: Any) -> sampling.Chosen:
        found = sound(*arguments, **options)
        return found._replace(ids=found.ids + 1) if next(asked) == way else found

    monkeypatch.setattr(sampling, "sample", wrong)
    with pytest.raises(UnfitError, match=f"does not choose the likeliest token {way}"):
        test.run(LocalExchange(), 1)


def test_a_corrupted_checkpoint_never_serves(model: Path, tmp_path: Path) -> None:
    """The bytes of one expert are others than when the golden logits were made: the worker does not enter its epoch."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    with open_checkpoint(broken) as checkpoint:
        part = checkpoint.slices["model.layers.1.mlp.experts.down_proj_blocks"]
        where, count = part.offset + part.nbytes // 2, 4096
        file = part.file.path
    with file.open("r+b") as raw:
        raw.seek(where)
        sound = raw.read(count)
        raw.seek(where)
        raw.write(bytes(byte ^ 0x55 for byte in sound))
    worker = Worker(WorkerConfig(model=str(broken), kv_tokens=1024))
    try:
        facts = worker.prepare()
        members = (Member(0, facts.worker_id, facts.address),)
        spec = GroupSpec("g", 1, "", 0, members, even_placement(facts.num_layers, facts.num_experts, 1))
        with pytest.raises(UnfitError):
            worker.reconfigure(spec, True)
        assert not worker.status()["ready"]
    finally:
        worker.stop()


def test_golden_logits_of_another_checkpoint_are_refused(model: Path) -> None:
    """They say nothing about this one."""
    with pytest.raises(CheckpointError, match="another checkpoint"):
        golden.load(model / golden.NAME, "0" * 64)

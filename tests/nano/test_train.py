"""A few steps of training."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.cluster.nano import train
from shoal.cluster.nano.mixture import Mixture
from shoal.cluster.nano.recipe import Recipe, Stage
from shoal.cluster.nano.shape import NANO
from shoal.cluster.nano.train import STATE, Trainer
from tests.nano.conftest import NANO_DIR


def recipe(steps: int) -> Recipe:
    plain = Stage("plain", 2, 200, Mixture({"add 2 digits": 1}))
    packed = Stage("packed", steps, 200, Mixture({"told": 1}), rate_to=0.0, quantised=True)
    return Recipe(
        seed=1, ranks=1, matrix_rate=0.02, other_rate=0.004, warmup=2, average=0.9,
        exam_every=100, exam_size=1, stages=(plain, packed),
    )  # fmt: skip


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between stages and taken up again it ends with the same weights, log and step as in one go."""
    shape = replace(NANO, num_layers=1, hidden_size=32, intermediate_size=32, num_experts=4, num_heads=2)
    monkeypatch.setattr(train, "NANO", shape)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(NANO_DIR / "tokenizer.json", tmp_path / name)
    Trainer(recipe(2), tmp_path / "one", 0).run()
    first = Trainer(recipe(2), tmp_path / "two", 0)
    first.recipe = Recipe(**{**{k: getattr(first.recipe, k) for k in Recipe.__slots__}, "stages": recipe(2).stages[:1]})
    first.run()
    Trainer(recipe(2), tmp_path / "two", 0).run()
    one, two = (torch.load(tmp_path / name / STATE, weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    assert all(torch.equal(one["model"][name], weight) for name, weight in two["model"].items())
    logs = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("one", "two")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]

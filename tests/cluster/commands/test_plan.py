"""`shoal plan`: what people see, and that it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.cli import main
from shoal.cluster.commands import plan
from shoal.cluster.errors import ConfigError

BLOCKED = """
import sys
for name in ("torch", "ray", "triton", "numpy", "transformers", "redis", "grpc"):
    sys.modules[name] = None
sys.argv = ["shoal", *sys.argv[1:]]
from shoal.cluster.cli import main
main()
"""


def options(**changed: Any) -> plan.Options:
    """Eight H100 and 120b, but for what is changed."""
    known: dict[str, Any] = {
        "model": "120b", "gpus": 8, "gpu": "h100", "gpu_memory": "80GB", "bandwidth": None, "tflops": None,
        "context": 8192, "batch": None, "step_tokens": 8192, "share": 0.9, "spare_slots": 0, "as_json": True,
    }  # fmt: skip
    return plan.Options(**{**known, **changed})


def printed(capsys: pytest.CaptureFixture[str], **changed: Any) -> dict[str, Any]:
    """The JSON that it prints."""
    plan.run(options(**changed))
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_runs_without_torch_and_fits_a_terminal() -> None:
    """What the documentation promises, on 80 columns, with nothing heavy installed."""
    arguments = ["plan", "--model", "120b", "--gpus", "8", "--gpu-memory", "80GB"]
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "COLUMNS": "80"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "8 × 1" in ran.stdout
    assert "1 × 8" in ran.stdout
    assert "…" not in ran.stdout
    assert "cluster.ep_size=8" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_the_record_of_eight_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """Four layouts; more ranks leave more room for KV and hold more sequences."""
    record = printed(capsys)
    assert [1, 2, 4, 8] == [way["ep_size"] for way in record["layouts"]]
    held = [way["sequences"]["8192"] for way in record["layouts"]]
    assert held == sorted(held)
    assert all(way["fits"] for way in record["layouts"])


def test_a_checkpoint_directory_is_planned_by_its_own_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as the preset that it was made of."""
    path = make_checkpoint(tmp_path / "t", "tiny")
    made = printed(capsys, model=str(path), gpus=2, context=1024)
    assert made["layouts"] == printed(capsys, model="tiny", gpus=2, context=1024)["layouts"]


def test_measured_rates_take_the_place_of_a_data_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    """Half the bandwidth, half the bound where bytes decide."""
    whole = printed(capsys, gpus=1, gpu="h200", gpu_memory=None, bandwidth=4.0)["layouts"][0]
    half = printed(capsys, gpus=1, gpu="h200", gpu_memory=None, bandwidth=2.0)["layouts"][0]
    assert half["bound_tokens_per_second"] == pytest.approx(whole["bound_tokens_per_second"] / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"model": "7b"}, "--model is no preset"),
        ({"gpu": "abacus"}, "'abacus' is not one of a100, h100"),
        ({"gpu_memory": "much"}, "'much' is no size such as 80GB"),
        ({"context": 200000}, "--context must be 1 to 131072"),
    ],
)
def test_wrong_flags_are_named(changed: dict[str, Any], expected: str) -> None:
    """One line: which flag, and what it may be."""
    with pytest.raises(ConfigError, match=expected):
        plan.run(options(**changed))


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an error: an answer, with what would be needed."""
    monkeypatch.setattr(sys, "argv", ["shoal", "plan", "--model", "120b", "--gpu-memory", "24GB"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "It does not fit: with 1 ranks each needs 65.8 GB" in capsys.readouterr().out

"""`shoal.cluster.checkpoint.verify`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.cluster.checkpoint import manifest, verify
from shoal.cluster.checkpoint.verify import verify_checkpoint
from tests.checkpoint.broken import edit_json, edit_tensors

Copy = Callable[[Path], Path]
SCALES = "model.layers.0.mlp.experts.down_proj_scales"
HEAD = "lm_head.weight"


@pytest.mark.parametrize("layout", ["hf", "sharded", "original"])
def test_good_ones_pass(layout: str, request: pytest.FixtureRequest) -> None:
    """What was made verifies; every file is hashed as it is on disk; progress ends at the size of the weights."""
    directory: Path = request.getfixturevalue(layout)
    seen: list[tuple[int, int]] = []
    report = verify_checkpoint(directory, lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert seen[-1] == (report.nbytes, report.nbytes)
    assert set(report.hashes) == {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    for name, digest in report.hashes.items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest


def _poison(tensors: dict[str, Tensor]) -> None:
    tensors[SCALES][3, 63, 0] = 255
    tensors[HEAD][319, 63] = torch.inf
    tensors[HEAD][1, 2] = torch.nan


@pytest.mark.parametrize("chunk", [64, 8 << 20])
def test_finds_every_tensor_with_bad_values(copy: Copy, hf: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN scales and non-finite weights are reported once per tensor with their place, however the file is read."""
    monkeypatch.setattr(verify, "_CHUNK", chunk)
    root = copy(hf)
    edit_tensors(root, _poison)
    problems = sorted(str(problem) for problem in verify_checkpoint(root).problems)
    assert [problem.split(": ", 1)[1] for problem in problems] == [
        f"tensor {HEAD}: bad value at [1, 2]: expected finite numbers, found nan",
        f"tensor {SCALES}: bad value at [3, 63, 0]: expected scale bytes 0 to 254, found NaN scale 255",
    ]


def test_finds_one_flipped_bit(copy: Copy, hf: Path) -> None:
    """With a manifest, a single changed bit of any weight is found; without one it may be a weight like another."""
    root = copy(hf)
    manifest.write(root, verify_checkpoint(root).hashes)
    assert verify_checkpoint(root).had_manifest
    assert verify_checkpoint(root).problems == ()
    content = bytearray((root / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (root / "model.safetensors").write_bytes(content)
    (problem,) = verify_checkpoint(root).problems
    assert problem.problem == "wrong sha256"
    assert verify_checkpoint(root, compare=False).problems == ()


def test_manifest_may_cover_more(copy: Copy, hf: Path, tmp_path: Path) -> None:
    """Other files of the directory that the manifest lists are checked too; a name that leads out of it is missing."""
    root = copy(hf)
    (root / "README.md").write_text("hello")
    (tmp_path / "outside").write_text("hello")
    digest = hashlib.sha256(b"hello").hexdigest()
    hashes = verify_checkpoint(root).hashes
    manifest.write(root, {**hashes, "README.md": digest})
    assert verify_checkpoint(root).problems == ()
    manifest.write(root, {**hashes, "README.md": "0" * 64, "../outside": digest})
    assert [problem.problem for problem in verify_checkpoint(root).problems] == [
        "in SHA256SUMS but missing",
        "wrong sha256",
    ]


def _too_high(table: dict[str, object]) -> None:
    added = table["added_tokens"]
    assert isinstance(added, list)
    added[-1]["id"] = 320


def _no_return(table: dict[str, object]) -> None:
    added = table["added_tokens"]
    assert isinstance(added, list)
    added[:] = [item for item in added if item["content"] != "<|return|>"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_too_high, "bad token id: expected 0 to 319, found 320"),
        (_no_return, "no such token: expected the eos_token_id 292"),
        (lambda table: table.pop("model"), "not a tokenizer"),
    ],
)
def test_tokenizer_must_fit(copy: Copy, hf: Path, change: Callable[[dict[str, object]], object], text: str) -> None:
    """A tokenizer whose ids the model has no row for, or that cannot end a turn, is reported."""
    root = copy(hf)
    edit_json(root / "tokenizer.json", change)
    (problem,) = verify_checkpoint(root).problems
    assert text in str(problem)


def test_tokenizer_must_exist(copy: Copy, hf: Path) -> None:
    """A checkpoint without its tokenizer cannot be served."""
    root = copy(hf)
    (root / "tokenizer.json").unlink()
    (problem,) = verify_checkpoint(root).problems
    assert str(problem) == f"{root}/tokenizer.json: missing file"

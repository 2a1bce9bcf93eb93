"""`shoal.cluster.checkpoint.commands`: the exit codes and lines that people and scripts see."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shoal.cluster.checkpoint import in_memory
from shoal.cluster.checkpoint.commands import app
from shoal.workers.checkpoint import open_checkpoint
from tests.checkpoint.broken import edit_tensors

Copy = Callable[[Path], Path]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _assert_refused(result: Result, text: str) -> None:
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert [line for line in lines if text in line] == lines[-1:]
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_make(tmp_path: Path, layout: str) -> None:
    """`make` writes a checkpoint of the wanted preset and layout."""
    result = _run("make", "--preset", "tiny", "--out", tmp_path / "t", "--seed", 1, "--layout", layout)
    assert result.exit_code == 0, result.output
    with open_checkpoint(tmp_path / "t") as checkpoint:
        assert checkpoint.layout == layout
        assert checkpoint.config.num_experts == 8


def test_make_refuses(tmp_path: Path, hf: Path) -> None:
    """An unknown preset and an existing directory are one line each, exit code 2."""
    _assert_refused(_run("make", "--preset", "7b", "--out", tmp_path / "t"), "preset: '7b' is not one of tiny")
    _assert_refused(_run("make", "--out", hf), "exists already")
    assert not list(tmp_path.iterdir())


def test_make_synthetic(tmp_path: Path) -> None:
    """`--synthetic` says that answers are noise, in its output and in the directory."""
    result = _run("make", "--preset", "tiny", "--synthetic", "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    assert "answers are noise" in result.output
    assert "answers are noise" in (tmp_path / "t" / "README.md").read_text()


def test_make_in_memory(tmp_path: Path) -> None:
    """`--in-memory` makes this rank's share alone, writes nothing and says what came."""
    arguments = ("make", "--preset", "tiny", "--synthetic", "--in-memory", "--device", "cpu")
    result = _run(*arguments, "--ep-size", 4, "--rank", 3)
    assert result.exit_code == 0, result.output
    assert "built tiny on cpu as rank 3 of 4" in result.output
    assert "of 2 experts per layer" in result.output
    assert "answers are noise" in result.output
    _assert_refused(_run("make", "--in-memory"), "say --synthetic, and no --out")
    _assert_refused(_run(*arguments, "--out", tmp_path / "t"), "say --synthetic, and no --out")
    _assert_refused(_run(*arguments, "--rank", 1), "--rank 1 is not one of 1 that share 8 experts")
    _assert_refused(_run(*arguments[:-1], "abacus"), "abacus")
    _assert_refused(_run("make"), "--out names the directory")


def test_in_memory_asks_for_room_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused before a byte is made, with both sizes."""
    monkeypatch.setattr(in_memory, "free_bytes", lambda device: 60 << 30)
    result = _run("make", "--preset", "120b", "--synthetic", "--in-memory", "--device", "cpu")
    _assert_refused(result, "120b needs 60.77 GiB as rank 0 of 1, 60.00 GiB are free on cpu")


def test_inspect(hf: Path) -> None:
    """`inspect` shows the fingerprint, every kind of tensor and the share of a worker of two."""
    result = _run("inspect", hf)
    assert result.exit_code == 0, result.output
    text = "".join(result.output.split())
    with open_checkpoint(hf) as checkpoint:
        assert checkpoint.fingerprint in text
    assert "layers.*.self_attn.sinks" in text
    assert "4×64×2×16" in text


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_refuses_what_is_no_checkpoint(tmp_path: Path, command: str) -> None:
    """A directory that holds no checkpoint is one line, exit code 2."""
    _assert_refused(_run(command, tmp_path), "not a checkpoint directory")


def test_verify(copy: Copy, hf: Path) -> None:
    """`verify` writes a manifest when asked, then finds the file that changed, exit code 2."""
    root = copy(hf)
    assert _run("verify", root).exit_code == 0
    assert _run("verify", root, "--write-manifest").exit_code == 0
    assert "hashes as recorded" in _run("verify", root).output
    edit_tensors(root, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    result = _run("verify", root)
    assert result.exit_code == 2
    assert "model.norm.weight: bad value at [0]" in result.stderr
    assert "wrong sha256" in result.stderr


def test_a_bad_checkpoint_gets_no_manifest(copy: Copy, hf: Path) -> None:
    """Hashes of what is known to be wrong are not recorded."""
    root = copy(hf)
    edit_tensors(root, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert _run("verify", root, "--write-manifest").exit_code == 2
    assert not (root / "SHA256SUMS").exists()


def test_help_needs_no_torch() -> None:
    """Importing the commands, as the command line does for every call, does not import torch."""
    code = "import sys, shoal.cluster.checkpoint.commands; sys.exit('torch' in sys.modules)"
    path = ":".join(entry for entry in sys.path if entry)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}).returncode == 0

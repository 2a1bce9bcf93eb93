"""`shoal.cluster.checkpoint.manifest`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.checkpoint import manifest
from shoal.workers.checkpoint.error import CheckpointError
from tests.checkpoint.broken import error_of

HASHES = {"a.json": "0" * 64, "original/b.safetensors": "f" * 64}


def test_comes_back(tmp_path: Path) -> None:
    """What is written is read again; where nothing was written there is nothing."""
    assert manifest.read(tmp_path) is None
    assert manifest.write(tmp_path, HASHES) == tmp_path / manifest.NAME
    assert manifest.read(tmp_path) == HASHES


def test_coreutils_write_the_same(tmp_path: Path) -> None:
    """The output of the sha256sum command is a manifest."""
    (tmp_path / "a").write_text("a")
    listed = subprocess.run(["sha256sum", "a"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert list(manifest.parse(listed, tmp_path)) == ["a"]


def test_tells_differences() -> None:
    """Changed, uncovered and vanished files are each reported."""
    actual = {"a.json": "1" * 64, "new": "2" * 64}
    problems = [str(problem) for problem in manifest.differences(HASHES, actual, Path("d"))]
    assert [problem.split(": ")[0] for problem in problems] == ["d/a.json", "d/new", "d/original/b.safetensors"]
    assert [problem.split(": ")[1] for problem in problems] == [
        "wrong sha256",
        "not in SHA256SUMS",
        "in SHA256SUMS but missing",
    ]


@pytest.mark.parametrize("text", ["nonsense", "0" * 64 + " a", f"{'0' * 64}  a\n{'0' * 64}  a\n"])
def test_refuses_malformed_lines(text: str) -> None:
    """A line that is no hash and name, or a file named twice, is an error naming the line."""
    with pytest.raises(CheckpointError, match=r"SHA256SUMS: line \d"):
        manifest.parse(text, Path("SHA256SUMS"))


@given(st.text())
def test_any_text_gives_hashes_or_the_error(text: str) -> None:
    """Whatever stands in the file, parsing ends in hashes or in CheckpointError."""
    error_of(lambda: manifest.parse(text, Path("SHA256SUMS")))


def test_not_text(tmp_path: Path) -> None:
    """A manifest that is not UTF-8 is refused."""
    (tmp_path / manifest.NAME).write_bytes(b"\xff\xff")
    with pytest.raises(CheckpointError, match="cannot be read"):
        manifest.read(tmp_path)

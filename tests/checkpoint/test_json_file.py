"""`shoal.workers.checkpoint.json_file`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.workers.checkpoint import json_file
from shoal.workers.checkpoint.error import CheckpointError


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'{"a": 1, "a": 2}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_refuses_what_is_not_one_object(text: bytes) -> None:
    """Anything but exactly one object, without doubled keys, is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        json_file.parse_object(text)


@given(st.binary(max_size=200))
def test_never_fails_otherwise(text: bytes) -> None:
    """Any bytes give an object or a ValueError."""
    with suppress(ValueError):
        assert isinstance(json_file.parse_object(text), dict)


def test_names_the_file(tmp_path: Path) -> None:
    """A file that is absent, a directory, or not JSON is one error naming it."""
    (tmp_path / "bad.json").write_text("{")
    for path, problem in (
        (tmp_path / "no.json", "missing"),
        (tmp_path, "not a regular"),
        (tmp_path / "bad.json", "JSON"),
    ):
        with pytest.raises(CheckpointError, match=problem) as caught:
            json_file.read_object(path)
        assert caught.value.file == str(path)


def test_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    """A named pipe is refused instead of being waited on."""
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        json_file.read_object(tmp_path / "pipe.json")


def test_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond the limit is refused by its size, unread."""
    monkeypatch.setattr(json_file, "_LARGEST", 10)
    (tmp_path / "long.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="too large"):
        json_file.read_object(tmp_path / "long.json")

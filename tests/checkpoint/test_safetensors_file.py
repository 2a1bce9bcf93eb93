"""`shoal.workers.checkpoint.safetensors_file`, beside the safetensors package."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.safetensors_file import LENGTH_BYTES, TensorFile, parse_header
from tests.checkpoint.broken import JSON, error_of

NOWHERE = Path("weights.safetensors")
SMALL = {
    "a": {"dtype": "U8", "shape": [2, 3], "data_offsets": [0, 6]},
    "b": {"dtype": "BF16", "shape": [5], "data_offsets": [6, 16]},
}


def _parse(table: object) -> object:
    header = json.dumps(table).encode()
    return parse_header(NOWHERE, header, LENGTH_BYTES + len(header) + 16)


def test_agrees_with_the_package(tmp_path: Path) -> None:
    """Names, dtypes, shapes and bytes are those that the safetensors package wrote."""
    tensors = {
        "x": torch.randn(3, 5),
        "y": torch.randn(7).bfloat16(),
        "z": torch.arange(6, dtype=torch.uint8).view(2, 3),
        "empty": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "f.safetensors", metadata={"format": "pt"})
    with TensorFile(tmp_path / "f.safetensors") as file:
        assert set(file.entries) == set(tensors)
        for name, tensor in tensors.items():
            entry = file.entries[name]
            buffer = bytearray(entry.nbytes)
            file.read_into(memoryview(buffer), entry.offset, name)
            assert entry.shape == tuple(tensor.shape)
            assert bytes(buffer) == tensor.flatten().view(torch.uint8).numpy().tobytes()


def _change(name: str, key: str, value: object) -> object:
    return {**SMALL, name: {**SMALL[name], key: value}}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (_change("b", "data_offsets", [5, 15]), "overlaps"),
        (_change("b", "data_offsets", [8, 18]), "hole"),
        (_change("a", "data_offsets", [6, 0]), "data_offsets"),
        (_change("a", "data_offsets", [-6, 0]), "data_offsets"),
        (_change("a", "shape", [2, 4]), "size"),
        (_change("a", "shape", [2, True]), "shape"),
        (_change("a", "shape", [2.0, 3]), "shape"),
        (_change("a", "shape", [1] * 9), "shape"),
        (_change("a", "shape", [1 << 60, 1 << 60]), "shape"),
        (_change("a", "dtype", "U9"), "dtype"),
        (_change("a", "dtype", None), "dtype"),
        ({**SMALL, "a": {"dtype": "U8"}}, "entry"),
        ({**SMALL, "a": []}, "entry"),
        ({"a": SMALL["a"]}, "bytes after the last tensor"),
        ({**SMALL, "c": {"dtype": "U8", "shape": [1], "data_offsets": [16, 17]}}, "truncated"),
        ([], "bad header"),
    ],
)
def test_refuses_a_bad_header(table: object, problem: str) -> None:
    """Holes, overlaps, impossible sizes and malformed entries are each named."""
    with pytest.raises(CheckpointError, match=problem):
        _parse(table)


def test_refuses_a_doubled_name() -> None:
    """A tensor named twice in the header is refused, though JSON would silently keep the last."""
    entry = json.dumps(SMALL["a"])
    with pytest.raises(CheckpointError, match="twice"):
        parse_header(NOWHERE, f'{{"a": {entry}, "a": {entry}}}'.encode(), 1000)


@given(st.sampled_from(["a", "b", "c"]), st.sampled_from(["dtype", "shape", "data_offsets", "more"]), JSON)
def test_any_field_gives_entries_or_the_error(name: str, key: str, value: object) -> None:
    """Whatever stands in a field, parsing ends in entries or in CheckpointError."""
    error = error_of(lambda: _parse({**SMALL, name: {**SMALL.get(name, {}), key: value}}))
    assert error is None or "\n" not in str(error)


@given(st.binary(max_size=300))
def test_any_bytes_give_entries_or_the_error(header: bytes) -> None:
    """Whatever stands in place of the header, parsing ends in entries or in CheckpointError."""
    error_of(lambda: parse_header(NOWHERE, header, LENGTH_BYTES + len(header)))


@settings(max_examples=60)
@given(data=st.data())
def test_never_accepts_what_the_package_refuses(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file with some of its first bytes changed, or its end cut off, is refused whenever the package refuses it."""
    directory = tmp_path_factory.getbasetemp() / "mutated"
    directory.mkdir(exist_ok=True)
    header = json.dumps(SMALL).encode()
    content = bytearray(len(header).to_bytes(LENGTH_BYTES, "little") + header + bytes(16))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = directory / "f.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    if error_of(lambda: TensorFile(path).close()) is None:
        load_file(path)


def test_the_package_refuses_too(tmp_path: Path) -> None:
    """The comparison above has teeth: the package does refuse a hole."""
    path = tmp_path / "f.safetensors"
    header = json.dumps(_change("b", "data_offsets", [8, 18])).encode()
    path.write_bytes(len(header).to_bytes(LENGTH_BYTES, "little") + header + bytes(18))
    with pytest.raises(SafetensorError):
        load_file(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        ((1 << 62).to_bytes(8, "little"), "header too long"),
        ((50).to_bytes(8, "little") + b"{}", "truncated in the header"),
    ],
)
def test_refuses_a_bad_beginning(tmp_path: Path, content: bytes, problem: str) -> None:
    """A file too short for its own header is refused before the header's memory is allocated."""
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        TensorFile(path)
    assert caught.value.file == str(path)


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_directory, os.mkfifo, lambda path: None])
def test_refuses_what_is_not_a_file(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """A directory, a pipe (without waiting on it) and nothing at all are errors."""
    make(tmp_path / "f")
    with pytest.raises(CheckpointError, match="file"):
        TensorFile(tmp_path / "f")


def test_says_when_a_file_shrinks(tmp_path: Path) -> None:
    """A file truncated after it was checked is an error when it is read, never a short tensor."""
    path = tmp_path / "f.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    with TensorFile(path) as file:
        os.truncate(path, file.entries["a"].offset + 10)
        with pytest.raises(CheckpointError, match=r"truncated while .* expected 400 bytes .* found 10 bytes"):
            file.read_into(memoryview(bytearray(400)), file.entries["a"].offset, "a")


def test_closes_after_an_error(tmp_path: Path) -> None:
    """No descriptor is left behind by a file that was refused."""
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"bad")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(CheckpointError):
            TensorFile(path)
    assert before == len(os.listdir("/proc/self/fd"))

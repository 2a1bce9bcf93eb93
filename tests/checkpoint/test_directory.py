"""`shoal.workers.checkpoint.directory`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from shoal.workers.checkpoint.directory import INDEX, SINGLE, find_files, parse_index
from shoal.workers.checkpoint.error import CheckpointError
from tests.checkpoint.broken import JSON, edit_json, error_of

Copy = Callable[[Path], Path]


def test_prefers_the_root(copy: Copy, hf: Path, original: Path) -> None:
    """A repository that holds both layouts is read at its root; `original/` is read when it is named."""
    root = copy(hf)
    shutil.copytree(original / "original", root / "original")
    assert (find_files(root).layout, find_files(root).path) == ("hf", root)
    named = find_files(root / "original")
    assert (named.layout, named.path) == ("original", root / "original")


def test_takes_original_when_the_root_has_no_weights(copy: Copy, hf: Path, original: Path) -> None:
    """Someone who downloaded only `original/` and the small files of the root has a checkpoint."""
    root = copy(original)
    shutil.copy(hf / "config.json", root / "config.json")
    assert find_files(root).path == root / "original"


def test_finds_what_both_layouts_share(original: Path) -> None:
    """The tokenizer and the ends of a turn of `original/` come from the directory above."""
    files = find_files(original / "original")
    assert files.tokenizer == original / "tokenizer.json"
    assert len(files.config.eos_token_ids) == 3


def test_takes_every_file_of_original(copy: Copy, original: Path) -> None:
    """OpenAI's layout needs no index: all safetensors files there belong to it."""
    root = copy(original)
    os.rename(root / "original" / SINGLE, root / "original" / "model--00001-of-00001.safetensors")
    assert [path.name for path in find_files(root).weights] == ["model--00001-of-00001.safetensors"]


def test_reads_links(copy: Copy, hf: Path, tmp_path: Path) -> None:
    """Files may be links out of the directory, as in Hugging Face's cache."""
    root = copy(hf)
    blob = tmp_path / "blob"
    os.rename(root / SINGLE, blob)
    (root / SINGLE).symlink_to(blob)
    assert find_files(root).weights == (root / SINGLE,)


@pytest.mark.parametrize("name", [".", "nothing", "tokenizer.json"])
def test_refuses_what_is_no_checkpoint(copy: Copy, hf: Path, name: str) -> None:
    """An empty directory, nothing and a file are no checkpoint directories."""
    root = copy(hf)
    (root / "config.json").unlink()
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        find_files(root / name)


def test_names_the_missing_index(copy: Copy, sharded: Path) -> None:
    """Shards without their index are not guessed together."""
    root = copy(sharded)
    (root / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"{INDEX}: missing file"):
        find_files(root)


def test_names_the_missing_weights(copy: Copy, hf: Path) -> None:
    """A config.json without weights names the file that should be there."""
    root = copy(hf)
    (root / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=f"{SINGLE}: missing file"):
        find_files(root)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "/tmp/m.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..",
        ".safetensors",
        "",
        "a\0.safetensors",
        7,
        None,
    ],
)
def test_index_stays_in_its_directory(name: object) -> None:
    """A file name in the index that leads elsewhere, or is none, is refused."""
    with pytest.raises(CheckpointError, match="tensor t: bad file name in the index"):
        parse_index({"weight_map": {"t": name}}, Path(INDEX))


@pytest.mark.parametrize("table", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}])
def test_refuses_an_index_without_a_map(table: dict[str, object]) -> None:
    """An index needs its weight_map."""
    with pytest.raises(CheckpointError, match="weight_map"):
        parse_index(table, Path(INDEX))


@given(JSON)
def test_any_index_gives_names_or_the_error(value: object) -> None:
    """Whatever stands in the index, parsing ends in names or in CheckpointError."""
    error_of(lambda: parse_index({"weight_map": value}, Path(INDEX)))


def test_bad_json_is_named(copy: Copy, hf: Path) -> None:
    """A config.json, generation_config.json or index that is not JSON is one error naming it."""
    root = copy(hf)
    (root / "generation_config.json").write_text("{'eos': 1}")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: bad JSON"):
        find_files(root)
    (root / INDEX).write_text("[]")
    (root / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{INDEX}: bad JSON"):
        find_files(root)


def test_other_errors_of_the_disk(hf: Path) -> None:
    """A name longer than the file system allows is an error like any other."""
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        find_files(hf / ("x" * 300))


def test_unknown_architecture(copy: Copy, hf: Path) -> None:
    """Another model's directory is refused by its architecture before its weights are looked at."""
    root = copy(hf)
    edit_json(root / "config.json", lambda table: table.update(model_type="mixtral"))
    (root / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: unknown architecture: .* found mixtral"):
        find_files(root)

"""Which files of a directory make up a checkpoint.

A published repository holds the weights twice: the Hugging Face layout at its root and OpenAI's in `original/`. The
root is preferred; `original/` is taken when it is named, or when the root has no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.workers.checkpoint.config_file import layout_of, parse_config
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.json_file import read_object
from shoal.workers.checkpoint.layout import Layout
from shoal.workers.model.config import ModelConfig

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The parts of one checkpoint. `index` maps each tensor to its file's name; None when there is no index."""

    path: Path  # the directory that holds config.json and the weights
    layout: Layout
    config: ModelConfig
    weights: tuple[Path, ...]  # in the order of their names
    index: Mapping[str, str] | None
    tokenizer: Path | None


def find_files(path: Path) -> CheckpointFiles:
    """Finds and parses everything but the weights. Raises CheckpointError."""
    try:
        return _find(path)
    except OSError as error:  # a directory that may not be listed, a name that is too long, a disk that is gone
        raise CheckpointError(error.filename or path, f"cannot be read: {error.strerror or error}") from error


def _find(path: Path) -> CheckpointFiles:
    directory = _choose(path)
    config_path = directory / "config.json"
    table = read_object(config_path)
    layout = layout_of(table, config_path)
    # What belongs to both layouts lies at the root of the repository.
    shared = [directory, directory.parent] if directory.name == "original" else [directory]
    generation_path = _first(shared, "generation_config.json")
    generation = {} if generation_path is None else read_object(generation_path)
    config = parse_config(table, generation, config_path)
    weights, index = _weights(directory, layout)
    return CheckpointFiles(directory, layout, config, weights, index, _first(shared, "tokenizer.json"))


def _choose(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(path, "not a checkpoint directory", found="a file" if path.exists() else "nothing")
    inner = path / "original"
    if (path / "config.json").exists() and (_has_weights(path) or not _has_weights(inner)):
        return path
    if (inner / "config.json").exists():
        return inner
    raise CheckpointError(path, "not a checkpoint directory", expected="config.json in it or in original/")


def _has_weights(directory: Path) -> bool:
    return directory.is_dir() and ((directory / INDEX).exists() or any(directory.glob("*.safetensors")))


def _first(directories: list[Path], name: str) -> Path | None:
    return next((directory / name for directory in directories if (directory / name).is_file()), None)


def _weights(directory: Path, layout: Layout) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    index_path = directory / INDEX
    if index_path.exists():
        index = parse_index(read_object(index_path), index_path)
        return tuple(directory / name for name in sorted(set(index.values()))), index
    if (directory / SINGLE).exists():
        return (directory / SINGLE,), None
    found = tuple(sorted(directory.glob("*.safetensors")))
    if layout == "original" and found:  # its own reader takes every file that is there
        return found, None
    raise CheckpointError(index_path if found else directory / SINGLE, "missing file")


def parse_index(table: Mapping[str, object], path: Path) -> dict[str, str]:
    """The `weight_map` of an index file: tensor to file name. Pure.

    Raises CheckpointError, also when a name could lead out of the directory.
    """
    weights = table.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(path, "bad index", expected="weight_map, an object", found=type(weights).__name__)
    for tensor, name in weights.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
        if not plain or name.startswith("."):
            raise CheckpointError(
                path, "bad file name in the index", tensor=tensor, expected="a .safetensors beside it", found=repr(name)
            )
    return weights

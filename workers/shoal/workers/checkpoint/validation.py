"""The weights against the config: every tensor there, as large and of the kind it must be, and no other.

Only headers are looked at, so a whole checkpoint is judged before the first byte of a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shoal.workers.checkpoint.directory import INDEX, CheckpointFiles
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.layout import Layout, TensorSpec, hf_specs, original_source, original_specs
from shoal.workers.checkpoint.safetensors_file import TensorEntry, TensorFile
from shoal.workers.model.config import ModelConfig

TORCH_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "U8": torch.uint8}


@dataclass(frozen=True, slots=True)
class Slice:
    """An HF-named tensor's bytes: `nbytes` from `offset` of `file`, where they belong to the tensor `stored_as`."""

    file: TensorFile
    stored_as: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def validate(files: CheckpointFiles, opened: Sequence[TensorFile]) -> dict[str, Slice]:
    """Where each tensor of the model lies, by its HF name, in the order of `layout.hf_specs`.

    Raises CheckpointError for the first tensor that is missing, doubled, unknown, of a wrong shape or dtype, or in
    another file than the index says.
    """
    located = _locate(files, opened)
    config = files.config
    wanted = hf_specs(config) if files.layout == "hf" else original_specs(config)
    for spec in wanted:
        if spec.name not in located:
            where = files.weights[0] if len(files.weights) == 1 else files.path / INDEX
            raise CheckpointError(where, "missing tensor", tensor=spec.name, expected=f"{spec.dtypes[0]} {spec.shape}")
        _check_entry(spec, *located[spec.name])
    unknown = sorted(located.keys() - {spec.name for spec in wanted})
    if unknown:  # a weight we would not use: the model is not the one that config.json describes
        raise CheckpointError(
            located[unknown[0]][0].path,
            "unknown tensor",
            tensor=unknown[0],
            expected=f"{len(wanted)} tensors of GPT-OSS",
        )
    return {spec.name: _slice_of(spec, files.layout, config, located) for spec in hf_specs(config)}


def _locate(files: CheckpointFiles, opened: Sequence[TensorFile]) -> dict[str, tuple[TensorFile, TensorEntry]]:
    """Every stored tensor with its file; the index, where there is one, must say the same as the headers."""
    located: dict[str, tuple[TensorFile, TensorEntry]] = {}
    for file in opened:
        for name, entry in file.entries.items():
            if name in located:
                raise CheckpointError(file.path, "also in another file", tensor=name, found=located[name][0].path.name)
            if files.index is not None and files.index.get(name) != file.path.name:
                raise CheckpointError(
                    file.path, "not where the index says", tensor=name, expected=files.index.get(name, "absent")
                )
            located[name] = (file, entry)
    for name, file_name in (files.index or {}).items():
        if name not in located:
            raise CheckpointError(files.path / file_name, "missing tensor, though the index names it", tensor=name)
    return located


def _check_entry(spec: TensorSpec, file: TensorFile, entry: TensorEntry) -> None:
    if entry.shape != spec.shape:
        raise CheckpointError(file.path, "wrong shape", tensor=spec.name, expected=spec.shape, found=entry.shape)
    if entry.dtype not in spec.dtypes:
        raise CheckpointError(
            file.path, "wrong dtype", tensor=spec.name, expected=" or ".join(spec.dtypes), found=entry.dtype
        )


def _slice_of(
    spec: TensorSpec, layout: Layout, config: ModelConfig, located: Mapping[str, tuple[TensorFile, TensorEntry]]
) -> Slice:
    if layout == "hf":
        file, entry = located[spec.name]
        return Slice(file, entry.name, TORCH_DTYPES[entry.dtype], spec.shape, entry.offset, entry.nbytes)
    source = original_source(spec.name, config)
    file, entry = located[source.name]
    first, last = source.rows or (0, entry.shape[0])
    row = entry.nbytes // entry.shape[0]
    offset = entry.offset + first * row
    return Slice(file, entry.name, TORCH_DTYPES[entry.dtype], spec.shape, offset, (last - first) * row)

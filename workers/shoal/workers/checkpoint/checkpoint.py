"""An open checkpoint: validated as a whole before the first byte of a weight is read, then read slice by slice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from shoal.workers.checkpoint.directory import CheckpointFiles, find_files
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.layout import (
    Layout,
    TensorSpec,
    hf_specs,
    is_expert_tensor,
    is_scale_tensor,
    original_source,
    original_specs,
)
from shoal.workers.checkpoint.safetensors_file import TensorEntry, TensorFile
from shoal.workers.model.config import ModelConfig

TORCH_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "U8": torch.uint8}
NAN_SCALE = 255  # E8M0: the only byte that is not a power of two
_SAMPLE = 1024  # bytes of each end of each tensor that go into the fingerprint


@dataclass(frozen=True, slots=True)
class Slice:
    """An HF-named tensor's bytes: `nbytes` from `offset` of `file`, where they belong to the tensor `stored_as`."""

    file: TensorFile
    stored_as: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """Read access to one checkpoint under the Hugging Face names, whatever its layout.

    Every read is a byte range of an already checked file; nothing is cached and nothing is mapped. Reads may come from
    several threads at once. What is returned belongs to the caller. Use as a context manager or call `close`.

    Attributes:
        config: the model's shape.
        path: the directory that holds the weights (ends in `original` when that was chosen).
        layout: "hf" or "original".
        slices: where each tensor lies, by its HF name, in the order of `layout.hf_specs`.
        tokenizer_path: tokenizer.json, beside config.json or at the root above `original/`; None when absent.
    """

    def __init__(self, files: CheckpointFiles, slices: Mapping[str, Slice], resources: ExitStack) -> None:
        """Use `open_checkpoint`."""
        self.config: ModelConfig = files.config
        self.path: Path = files.path
        self.layout: Layout = files.layout
        self.tokenizer_path: Path | None = files.tokenizer
        self.slices = slices
        self._resources = resources
        self._lock = threading.Lock()
        self._bytes_read = 0
        self.fingerprint = _fingerprint(files.config, slices)

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read by `tensor` and `experts` so far."""
        return self._bytes_read

    @property
    def files(self) -> list[TensorFile]:
        """The open weight files, in the order of their names."""
        return sorted({part.file for part in self.slices.values()}, key=lambda file: file.path)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor `name`, in its stored dtype.

        Raises CheckpointError when the file cannot be read any more or holds a NaN scale.
        """
        part = self._slice(name)
        result = torch.empty(part.shape, dtype=part.dtype)
        self._read(part, result, part.offset)
        if is_scale_tensor(name):
            check_scales(part, result, range(part.shape[0]))
        return result

    def experts(self, name: str, ids: Sequence[int]) -> Tensor:
        """The slices `ids` of the expert tensor `name`: [len(ids), ...] in its stored dtype, in the order of `ids`.

        Reads only these slices' bytes, adjacent ids in one piece; an id may occur more than once.
        Raises CheckpointError as `tensor` does.
        """
        assert is_expert_tensor(name), name
        part = self._slice(name)
        count = part.shape[0]
        assert all(0 <= expert < count for expert in ids), (name, list(ids), count)
        stride = part.nbytes // count
        result = torch.empty((len(ids), *part.shape[1:]), dtype=part.dtype)
        for first, last in runs(ids):
            self._read(part, result[first:last], part.offset + ids[first] * stride)
        if is_scale_tensor(name):
            check_scales(part, result, ids)
        return result

    def close(self) -> None:
        """Closes the files; safe to call twice. What was returned stays valid."""
        self._resources.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _slice(self, name: str) -> Slice:
        assert name in self.slices, f"{name} is not a tensor of GPT-OSS"
        return self.slices[name]

    def _read(self, part: Slice, into: Tensor, offset: int) -> None:
        if into.numel() == 0:
            return
        part.file.read_into(byte_view(into), offset, part.stored_as)
        with self._lock:
            self._bytes_read += into.nbytes


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Opens a checkpoint directory and validates all of it but the weights' values.

    Checked against what config.json demands: the presence, shape and dtype of every tensor, that there is no other
    tensor, and that every file is as long as its header says. Nothing of the size of the weights is allocated.

    Raises:
        CheckpointError: one line naming file, tensor, expected and found.
    """
    files = find_files(Path(path))
    with ExitStack() as stack:
        opened = [stack.enter_context(TensorFile(weights)) for weights in files.weights]
        located = _locate(files, opened)
        return Checkpoint(files, _validate(files, located), stack.pop_all())


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


def _validate(files: CheckpointFiles, located: Mapping[str, tuple[TensorFile, TensorEntry]]) -> dict[str, Slice]:
    config = files.config
    wanted = hf_specs(config) if files.layout == "hf" else original_specs(config)
    for spec in wanted:
        if spec.name not in located:
            where = files.weights[0] if len(files.weights) == 1 else files.path
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


def runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Positions [first, last) of the longest runs of consecutive ids, so that each is one read.

    >>> list(runs([4, 5, 6, 2, 9]))
    [(0, 3), (3, 4), (4, 5)]
    """
    first = 0
    for position in range(1, len(ids) + 1):
        if position == len(ids) or ids[position] != ids[position - 1] + 1:
            yield first, position
            first = position


def check_scales(part: Slice, scales: Tensor, experts: Sequence[int]) -> None:
    """Refuses NaN: `scales` is uint8 [len(experts), rows, groups]. Raises CheckpointError naming the first."""
    bad = scales == NAN_SCALE
    if bool(bad.any()):
        position, row, group = bad.nonzero()[0].tolist()
        raise CheckpointError(
            part.file.path,
            f"NaN scale in expert {experts[position]}, row {row}, group {group}",
            tensor=part.stored_as,
            expected="bytes 0 to 254",
            found=f"{NAN_SCALE}, {int(bad.sum())} in all",
        )


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes."""
    assert tensor.is_contiguous()
    return tensor.view(-1).view(torch.uint8).numpy().data


def _fingerprint(config: ModelConfig, slices: Mapping[str, Slice]) -> str:
    """sha256 of the config and of every tensor's name, dtype, shape and both ends.

    It tells checkpoints apart, two fine-tunes of one shape included, in milliseconds; it does not prove integrity
    (`verify` does). Sharding and layout do not change it.
    """
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name in sorted(slices):
        part = slices[name]
        digest.update(f"{name} {part.dtype} {part.shape}".encode())
        size = min(_SAMPLE, part.nbytes)
        for offset in (part.offset, part.offset + part.nbytes - size):
            sample = bytearray(size)
            part.file.read_into(memoryview(sample), offset, part.stored_as)
            digest.update(sample)
    return digest.hexdigest()

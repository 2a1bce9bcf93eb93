"""An open checkpoint: validated as a whole before the first byte of a weight is read, then read slice by slice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from shoal.workers.checkpoint.directory import CheckpointFiles, find_files
from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.fingerprint import fingerprint
from shoal.workers.checkpoint.layout import Layout, is_expert_tensor, is_scale_tensor
from shoal.workers.checkpoint.reader import Reader
from shoal.workers.checkpoint.safetensors_file import TensorFile
from shoal.workers.checkpoint.validation import Slice, validate
from shoal.workers.model.config import ModelConfig

NAN_SCALE = 255  # E8M0: the only byte that is not a power of two


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
        reader: how bytes are read, and to which device; one thread and the CPU, until another one is set.
    """

    def __init__(self, files: CheckpointFiles, slices: Mapping[str, Slice], resources: ExitStack) -> None:
        """Use `open_checkpoint`."""
        self.config: ModelConfig = files.config
        self.path: Path = files.path
        self.layout: Layout = files.layout
        self.tokenizer_path: Path | None = files.tokenizer
        self.slices = slices
        self.reader = Reader()
        self._resources = resources
        self._lock = threading.Lock()
        self._bytes_read = 0
        self.fingerprint = fingerprint(files.config, slices)

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
        result = torch.empty(part.shape, dtype=part.dtype, device=self.reader.device)
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
        result = torch.empty((len(ids), *part.shape[1:]), dtype=part.dtype, device=self.reader.device)
        for first, last in runs(ids):
            self._read(part, result[first:last], part.offset + ids[first] * stride)
        if is_scale_tensor(name):
            check_scales(part, result, ids)
        return result

    def close(self) -> None:
        """Closes the files; safe to call twice. What was returned stays valid."""
        self.reader.close()
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
        self.reader.read(part.file, offset, into, part.stored_as)
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
        slices = validate(files, opened)
        return Checkpoint(files, slices, stack.pop_all())


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

"""Safetensors files written in place: headers first, then every tensor's bytes in whatever order they come.

The shapes are known before the values, so each byte's position is too: nothing is gathered in memory, and several
threads may write at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from shoal.workers.checkpoint.layout import Layout, TensorSpec
from shoal.workers.checkpoint.safetensors_file import BITS, LENGTH_BYTES

# About what was published: the 20b's `original/` is one file of 13.8 GB, its Hugging Face shards stay under 5 GB.
LARGEST_SHARD: dict[Layout, int] = {"hf": 5_000_000_000, "original": 16_000_000_000}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be: its name and its tensors in the order of their data."""

    name: str
    specs: tuple[TensorSpec, ...]


def nbytes(spec: TensorSpec) -> int:
    """Bytes of the tensor in the dtype it is published in."""
    return prod(spec.shape) * BITS[spec.dtypes[0]] // 8


def plan_shards(specs: Sequence[TensorSpec], layout: Layout, largest: int | None = None) -> list[Shard]:
    """Deals tensors out to files of at most `largest` bytes of data (a larger tensor gets its own). Pure.

    Names are the published ones: Hugging Face's count from 0 up to the number after "of".
    """
    limit = LARGEST_SHARD[layout] if largest is None else largest
    groups: list[list[TensorSpec]] = []
    room = 0
    for spec in specs:
        if nbytes(spec) > room or not groups:
            groups.append([])
            room = limit
        groups[-1].append(spec)
        room -= nbytes(spec)
    count = len(groups)
    if count == 1:
        names = ["model.safetensors"]
    elif layout == "hf":
        names = [f"model-{number:05d}-of-{count - 1:05d}.safetensors" for number in range(count)]
    else:
        names = [f"model--{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return [Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def header(shard: Shard) -> bytes:
    """The header of the finished file, its length first, padded so that the data starts at a multiple of 8."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in shard.specs:
        begin, end = end, end + nbytes(spec)
        table[spec.name] = {"dtype": spec.dtypes[0], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


class ShardWriter:
    """Files of their final size, open for writing at any position, from any thread. Use as a context manager.

    Leaving it without an error flushes everything to the disk.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        """Writes the headers. Raises OSError, for instance when the disk is full."""
        self._open: list[int] = []
        self._where: dict[str, tuple[int, int]] = {}
        try:
            for shard in shards:
                fd = os.open(directory / shard.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                self._open.append(fd)
                head = header(shard)
                _write_all(fd, memoryview(head), 0)
                offset = len(head)
                for spec in shard.specs:
                    self._where[spec.name] = (fd, offset)
                    offset += nbytes(spec)
                os.ftruncate(fd, offset)
        except BaseException:
            self._close()
            raise

    def write(self, tensor: str, offset: int, data: memoryview) -> None:
        """Puts `data` (bytes) at byte `offset` of the tensor's data. Raises OSError."""
        fd, start = self._where[tensor]
        _write_all(fd, data, start + offset)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            if error is None:
                for fd in self._open:
                    os.fsync(fd)
        finally:
            self._close()

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)

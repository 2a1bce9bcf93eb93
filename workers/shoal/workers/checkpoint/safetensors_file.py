"""One safetensors file: its header, checked, and its bytes by position.

Format (github.com/huggingface/safetensors, README "Format"): 8 bytes little-endian length N, N bytes of JSON mapping
each tensor's name to dtype, shape and data_offsets, then the data. Offsets count from the end of the header and must
cover the data without hole or overlap. Nothing here trusts the file: sizes are compared before anything is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from shoal.workers.checkpoint.error import CheckpointError
from shoal.workers.checkpoint.json_file import parse_object

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_LARGEST_SIZE = 1 << 48  # of one dimension: larger is nonsense, and products stay cheap
_MOST_DIMENSIONS = 8
_LARGEST_READ = 1 << 30  # bytes per preadv; Linux stops a little under 2 GiB

BITS = {  # of one element; the names are the format's own
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `offset` bytes from the start of the file, `nbytes` long, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """An open safetensors file whose header has been checked.

    The descriptor stays open, so what was checked is what is read, even if the path is replaced meanwhile.
    `read_into` may be called from several threads. Use as a context manager or call `close`.
    """

    def __init__(self, path: Path) -> None:
        """Opens and checks. Raises CheckpointError; leaves no descriptor behind when it does."""
        self.path = path
        self._fd = _open_regular(path)
        try:
            status = os.fstat(self._fd)
            self.size, self.written_ns = status.st_size, status.st_mtime_ns  # bytes; when it was changed last
            self.entries: Mapping[str, TensorEntry] = _read_header(path, self._fd, self.size)
        except BaseException:
            os.close(self._fd)
            raise

    def read_into(self, buffer: memoryview, offset: int, tensor: str) -> None:
        """Fills `buffer` (writable bytes) from `offset` of the file. Raises CheckpointError if it ends sooner."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done : done + _LARGEST_READ]], offset + done)
            except OSError as error:
                raise CheckpointError(self.path, f"cannot be read: {error.strerror}", tensor=tensor) from error
            if count == 0:
                raise CheckpointError(
                    self.path,
                    "truncated while it was read",
                    tensor=tensor,
                    expected=f"{len(buffer)} bytes at {offset}",
                    found=f"{done} bytes",
                )
            done += count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_regular(path: Path) -> int:
    """Opens for reading; a pipe or a device is refused before opening it could block."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(path, "not a regular file")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointError(path, "missing file") from None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error


def _read_header(path: Path, fd: int, size: int) -> dict[str, TensorEntry]:
    def read(count: int, offset: int) -> bytes:
        try:
            data = os.pread(fd, count, offset) if offset + count <= size else b""
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
        if len(data) < count:
            wanted = f"at least {offset + count} bytes"
            raise CheckpointError(path, "truncated in the header", expected=wanted, found=f"{size} bytes")
        return data

    length = int.from_bytes(read(LENGTH_BYTES, 0), "little")
    if length > LARGEST_HEADER:
        raise CheckpointError(path, "header too long", expected=f"at most {LARGEST_HEADER} bytes", found=length)
    return parse_header(path, read(length, LENGTH_BYTES), size)


def parse_header(path: Path, header: bytes, file_size: int) -> dict[str, TensorEntry]:
    """Checks the JSON `header` against a file of `file_size` bytes; entries in the order of their data.

    Pure. Raises CheckpointError for bad JSON, unknown dtypes, sizes that do not multiply out, holes, overlaps,
    and a file shorter or longer than its header says.
    """
    try:
        table = parse_object(header)
    except ValueError as error:
        raise CheckpointError(path, "bad header", found=error) from error
    table.pop("__metadata__", None)
    start = LENGTH_BYTES + len(header)
    entries = sorted(
        (_entry(path, name, value, start) for name, value in table.items()), key=lambda e: (e.offset, e.nbytes)
    )
    end = start
    for entry in entries:
        if entry.offset != end:
            problem = "overlaps another tensor" if entry.offset < end else "hole before its data"
            raise CheckpointError(
                path, problem, tensor=entry.name, expected=f"data at {end - start}", found=f"{entry.offset - start}"
            )
        end = entry.offset + entry.nbytes
        if end > file_size:
            raise CheckpointError(
                path,
                "truncated",
                tensor=entry.name,
                expected=f"a file of at least {end} bytes",
                found=f"{file_size} bytes",
            )
    if end != file_size:
        raise CheckpointError(path, "bytes after the last tensor", expected=f"{end} bytes", found=f"{file_size} bytes")
    return {entry.name: entry for entry in entries}


def _entry(path: Path, name: str, value: object, start: int) -> TensorEntry:
    def wrong(what: str, expected: object, found: object) -> CheckpointError:
        return CheckpointError(path, f"bad header: {what}", tensor=name, expected=expected, found=found)

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong("entry", "dtype, shape and data_offsets", value)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong("unknown dtype", "a dtype of the safetensors format", dtype)
    if not _sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise wrong("shape", f"at most {_MOST_DIMENSIONS} sizes", shape)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets", "[begin, end] with begin <= end", offsets)
    bits = prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise wrong("size", f"{-(-bits // 8)} bytes for {dtype} {shape}", f"{offsets[1] - offsets[0]} bytes")
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST_SIZE for item in value)

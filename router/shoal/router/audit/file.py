"""A trail on disk: appended in order, on the disk before anybody is told so."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from shoal.router.audit.chain import Head, chained, verify


class AuditFileError(Exception):
    """The trail cannot be written, or what is there is not a trail; the message says which file and why."""


class AuditFile:
    """One router's file, and beside it its head. Any thread may append; batches are whole or not at all. Nobody else
    writes it meanwhile: two would cut off each other's records."""

    def __init__(self, path: Path, key: bytes) -> None:
        """Goes on where it ended; half a line that a writer left when it died is cut off. Raises AuditFileError."""
        self._path, self._key, self._lock = path, key, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditFileError(f"{path}: {error.strerror}") from error
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            self._size, whole = 0, self._path.open("rb")
        except BlockingIOError:
            raise AuditFileError(f"{self._path}: another process writes it; give each router its own id") from None
        except OSError as error:
            raise AuditFileError(f"{self._path}: {error.strerror}") from error
        with whole:
            self.head, problems = verify(self._lines(whole), self._key, read_head(self._path))
        if problems:
            raise AuditFileError(
                f"{self._path}, line {problems[0].line}: {problems[0].what}; move it away to begin a new one"
            )
        self._cut()

    def _lines(self, whole: BinaryIO) -> Iterator[bytes]:
        """One after the other: a trail may be larger than memory."""
        for line in whole:
            if line.endswith(b"\n"):
                self._size += len(line)
            yield line

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write them, one after the other, all the way to the disk. Raises AuditFileError, having written nothing."""
        with self._lock:
            head, lines = self.head, []
            for record in records:
                line, head = chained(record, head, self._key)
                lines.append(line)
            raw = b"".join(lines)
            try:
                self._cut()  # half a batch, if the last one failed and could not be cut off then
                written = 0
                while written < len(raw):
                    written += os.write(self._file, raw[written:])
                os.fsync(self._file)
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._cut()
                raise AuditFileError(f"{self._path}: {error.strerror}") from error
            self._size += len(raw)
            self.head = head
            with contextlib.suppress(OSError):  # the records are there; the next append writes it again
                write_head(self._path, head)

    def _cut(self) -> None:
        """To where the last whole batch ended."""
        if os.fstat(self._file).st_size > self._size:
            os.ftruncate(self._file, self._size)

    def close(self) -> None:
        """Let go of the file. Safe to repeat."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def head_path(path: Path) -> Path:
    """Where a trail's head is kept."""
    return path.with_suffix(".head")


def write_head(path: Path, head: Head) -> None:
    """All of it or nothing."""
    part = head_path(path).with_suffix(".part")
    part.write_text(json.dumps({"number": head.number, "code": head.code}) + "\n")
    part.replace(head_path(path))


def read_head(path: Path) -> Head | None:
    """A trail's head, None when there is none. Raises AuditFileError when it is none."""
    try:
        fields = json.loads(head_path(path).read_text())
        return Head(int(fields["number"]), str(fields["code"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuditFileError(f"{head_path(path)}: is no head of a trail: {error}") from error

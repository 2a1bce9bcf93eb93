"""JSON from a directory that somebody else filled."""

from __future__ import annotations

import json
from pathlib import Path

from shoal.workers.checkpoint.error import CheckpointError

_LARGEST = 64 << 20  # bytes; the published index files are under 100 KB


class DuplicateKeyError(ValueError):
    """One object of the JSON text names a key twice: which of the two is meant, nobody can know."""


def parse_object(text: bytes) -> dict[str, object]:
    """The JSON object in `text` (UTF-8). Raises ValueError for everything that is not exactly one object."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, not {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises CheckpointError when it is absent, unreadable, too large or not JSON."""
    try:
        if not path.is_file():
            raise CheckpointError(path, "missing file" if not path.exists() else "not a regular file")
        size = path.stat().st_size
        if size > _LARGEST:
            raise CheckpointError(path, "too large", expected=f"at most {_LARGEST} bytes", found=f"{size} bytes")
        return parse_object(path.read_bytes())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(path, "bad JSON", found=error) from error


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(f"key {key!r} twice in one object")
            seen.add(key)
    return result

"""The hashes that a checkpoint was published or made with: a file that `sha256sum --check` reads too."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from shoal.workers.checkpoint.error import CheckpointError

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def parse(text: str, path: Path) -> dict[str, str]:
    """File name to sha256 in hex. Raises CheckpointError naming the line."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(path, f"line {number}", expected="a sha256, two spaces, a file name", found=line)
        if match[2] in hashes:
            raise CheckpointError(path, f"line {number}", expected="each file once", found=match[2])
        hashes[match[2]] = match[1]
    return hashes


def read(directory: Path) -> dict[str, str] | None:
    """The manifest of a directory, None when it has none. Raises CheckpointError."""
    path = directory / NAME
    if not path.exists():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(path, "cannot be read", found=error) from error


def write(directory: Path, hashes: Mapping[str, str]) -> Path:
    """Replaces the manifest of a directory in one step. Raises CheckpointError."""
    path = directory / NAME
    staging = directory / f".{NAME}.new"
    try:
        staging.write_text("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)), encoding="utf-8")
        os.replace(staging, path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise CheckpointError(path, f"cannot be written: {error.strerror}") from error
    return path


def differences(recorded: Mapping[str, str], actual: Mapping[str, str], directory: Path) -> list[CheckpointError]:
    """What the manifest says otherwise: changed files, files it lacks, files that are gone. Pure."""
    problems = []
    for name in sorted(recorded.keys() | actual.keys()):
        if name not in actual:
            problems.append(CheckpointError(directory / name, f"in {NAME} but missing"))
        elif name not in recorded:
            problems.append(CheckpointError(directory / name, f"not in {NAME}"))
        elif recorded[name] != actual[name]:
            problems.append(
                CheckpointError(directory / name, "wrong sha256", expected=recorded[name], found=actual[name])
            )
    return problems

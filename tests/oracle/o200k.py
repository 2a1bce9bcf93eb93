"""The vocabulary file that openai-harmony wants, rebuilt from npm's `tiktoken` package.

python -m tests.oracle.o200k          makes .build/o200k/o200k_base.tiktoken

openai-harmony checks the file's hash itself; so do we. The file is no part of the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "tiktoken@1.0.22"
MEMBER = "package/encoders/o200k_base.json"
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
CACHE = Path(__file__).resolve().parents[2] / ".build" / "o200k"
VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
_NAME = "o200k_base.tiktoken"


class AbsentVocabularyError(Exception):
    """The file is not here and cannot be made; the message says why."""


def vocabulary_directory() -> Path:
    """Where the file is: named by the environment, made earlier, or, on CI, made now. Raises AbsentVocabularyError."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    if (CACHE / _NAME).exists():
        return CACHE
    if not os.environ.get("CI"):
        raise AbsentVocabularyError(f"set {VARIABLE}, or run: python -m tests.oracle.o200k")
    return make()


def make() -> Path:
    """Fetch the package with npm and write the file. Raises AbsentVocabularyError."""
    if shutil.which("npm") is None:
        raise AbsentVocabularyError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder]
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or not archives:
            raise AbsentVocabularyError(f"npm cannot deliver {PACKAGE}: {run.stderr.strip()[-200:]}")
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None, f"{PACKAGE} has no {MEMBER}"
            table = json.load(member)["bpe_ranks"]
    data = vocabulary_of(table)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise AbsentVocabularyError(f"{PACKAGE} holds another vocabulary")
    CACHE.mkdir(parents=True, exist_ok=True)
    part = CACHE / f"{_NAME}.{os.getpid()}"
    part.write_bytes(data)
    part.rename(CACHE / _NAME)
    return CACHE


def vocabulary_of(table: str) -> bytes:
    """The package's table (lines of "! first-rank token token …", base64) as lines of "token rank"."""
    ranked = []
    for line in filter(None, table.split("\n")):
        _, first, *tokens = line.split(" ")
        ranked += [(int(first) + i, token) for i, token in enumerate(tokens)]
    return "".join(f"{token} {rank}\n" for rank, token in sorted(ranked)).encode()


if __name__ == "__main__":
    print(make())

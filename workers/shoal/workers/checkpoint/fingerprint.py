"""A short name for a checkpoint's content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

from shoal.workers.checkpoint.validation import Slice
from shoal.workers.model.config import ModelConfig

_SAMPLE = 1024  # bytes of each end of each tensor


def fingerprint(config: ModelConfig, slices: Mapping[str, Slice]) -> str:
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

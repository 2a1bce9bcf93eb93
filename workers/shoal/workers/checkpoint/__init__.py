"""Reading a GPT-OSS checkpoint directory, in either published layout, slice by slice.

What needs torch is imported when it is asked for: shapes can be read and planned with where torch is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.workers.checkpoint.error import CheckpointError

if TYPE_CHECKING:
    from shoal.workers.checkpoint.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]


def __getattr__(name: str) -> object:
    if name not in ("Checkpoint", "open_checkpoint"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shoal.workers.checkpoint import checkpoint

    return getattr(checkpoint, name)

"""Reading a GPT-OSS checkpoint directory, in either published layout, slice by slice."""

from shoal.workers.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shoal.workers.checkpoint.error import CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]

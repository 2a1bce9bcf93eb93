"""Logits that a model must reproduce, computed by other code than serves it: a file beside the checkpoint.

    tokens  i32 [T]     a prompt whose tokens meet every expert of every layer
    columns i32 [C]     ids of the vocabulary whose logits are kept
    logits  f32 [T, C]  after each token of the prompt
    lse     f32 [T]     log-sum-exp over the whole vocabulary

Metadata `fingerprint` binds it to one checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shoal.workers.checkpoint import Checkpoint, CheckpointError

log = structlog.get_logger()

NAME = "golden.safetensors"

_EXACT = 1e-3
"""Largest relative error of fp32 activations: another order of sums gives some 1e-6."""

_ROUGH = 0.35
"""Of narrower activations, and only for nine rows of ten: one flipped choice of an expert changes a whole row."""


@dataclass(frozen=True, slots=True)
class Golden:
    """The file's contents."""

    tokens: tuple[int, ...]
    columns: Tensor
    logits: Tensor
    lse: Tensor

    def save(self, path: Path, fingerprint: str) -> None:
        """Write it. Raises OSError."""
        tensors = {
            "tokens": torch.tensor(self.tokens, dtype=torch.int32), "columns": self.columns.to(torch.int32),
            "logits": self.logits.float().contiguous(), "lse": self.lse.float().contiguous(),
        }  # fmt: skip
        save_file(tensors, path, metadata={"fingerprint": fingerprint})


def find(checkpoint: Checkpoint, named: str) -> Golden | None:
    """The file `named`, or the one in the checkpoint directory if it is there. Raises CheckpointError."""
    path = Path(named) if named else checkpoint.path / NAME
    if not named and not path.exists():
        log.warning("no golden logits: ranks are only compared with each other", expected=str(path))
        return None
    return load(path, checkpoint.fingerprint)


def load(path: Path, fingerprint: str) -> Golden:
    """Read it. Raises CheckpointError when it is unreadable or made for another checkpoint."""
    try:
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get("fingerprint", "")
            tokens, columns, logits, lse = (file.get_tensor(n) for n in ("tokens", "columns", "logits", "lse"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read as golden logits: {error}") from error
    if made_for != fingerprint:
        raise CheckpointError(
            path, "was made for another checkpoint: run `shoal checkpoint golden` again",
            expected=fingerprint[:16], found=made_for[:16],
        )  # fmt: skip
    if logits.shape != (tokens.numel(), columns.numel()) or lse.shape != tokens.shape:
        raise CheckpointError(path, "the shapes of its tensors do not fit together")
    return Golden(tuple(tokens.tolist()), columns.long(), logits, lse)


def difference(golden: Golden, logits: Tensor, dtype: torch.dtype) -> str:
    """How `logits` fp32 [T, V] differ from the golden ones, empty when only by what `dtype` rounds away."""
    ours = torch.cat([logits[:, golden.columns], torch.logsumexp(logits.double(), -1).float()[:, None]], 1)
    wanted = torch.cat([golden.logits, golden.lse[:, None]], 1)
    errors = (ours - wanted).square().mean(1).sqrt() / wanted.square().mean(1).sqrt().clamp(min=1e-6)
    if dtype == torch.float32:
        worst, limit = float(errors.max()), _EXACT
    else:
        worst, limit = float(errors.quantile(0.9)), _ROUGH
    if worst <= limit:
        return ""
    row = int(errors.argmax())
    return f"golden logits are missed: relative error {worst:.2g}, worst after token {row}; at most {limit:g} is right"

"""What a checkpoint holds and what each worker of a group will read of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.workers.checkpoint.checkpoint import Checkpoint
from shoal.workers.checkpoint.layout import Layout, is_expert_tensor
from shoal.workers.checkpoint.validation import Slice
from shoal.workers.model.config import ModelConfig

EP_SIZES = (1, 2, 4, 8, 16, 32)
_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class TensorKind:
    """The tensors that differ only in their layer, under one name with `*` for the layer; `nbytes` of all of them."""

    name: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class RankShare:
    """Bytes that the worker with most experts reads in a group of `ep_size`: everything dense, its share of experts."""

    ep_size: int
    experts: int  # of each layer
    dense_bytes: int
    expert_bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A checkpoint on one page. Bytes are those of tensors, without headers."""

    path: Path
    layout: Layout
    fingerprint: str
    tokenizer: Path | None
    config: ModelConfig
    files: tuple[tuple[Path, int], ...]  # with their sizes in bytes, headers included
    kinds: tuple[TensorKind, ...]
    parameters: int
    dense_bytes: int
    expert_bytes: int
    shares: tuple[RankShare, ...]


def summarise(checkpoint: Checkpoint, ep_sizes: Sequence[int] = EP_SIZES) -> Summary:
    """The summary of an open checkpoint; sizes larger than the number of experts are left out. Reads no weights."""
    slices = checkpoint.slices
    experts = checkpoint.config.num_experts
    expert_bytes = sum(part.nbytes for name, part in slices.items() if is_expert_tensor(name))
    dense_bytes = sum(part.nbytes for part in slices.values()) - expert_bytes
    shares = []
    for size in ep_sizes:
        if size <= experts:
            most = -(-experts // size)
            shares.append(RankShare(size, most, dense_bytes, expert_bytes // experts * most))
    return Summary(
        path=checkpoint.path,
        layout=checkpoint.layout,
        fingerprint=checkpoint.fingerprint,
        tokenizer=checkpoint.tokenizer_path,
        config=checkpoint.config,
        files=tuple((file.path, file.size) for file in checkpoint.files),
        kinds=tuple(_kinds(checkpoint)),
        parameters=sum(_parameters(name, part) for name, part in slices.items()),
        dense_bytes=dense_bytes,
        expert_bytes=expert_bytes,
        shares=tuple(shares),
    )


def _kinds(checkpoint: Checkpoint) -> list[TensorKind]:
    grouped: dict[tuple[str, str, tuple[int, ...]], list[Slice]] = {}
    for name, part in checkpoint.slices.items():
        key = (_LAYER.sub("*", name), str(part.dtype).removeprefix("torch."), part.shape)
        grouped.setdefault(key, []).append(part)
    return [
        TensorKind(name, len(parts), dtype, shape, sum(part.nbytes for part in parts))
        for (name, dtype, shape), parts in grouped.items()
    ]


def _parameters(name: str, part: Slice) -> int:
    """Numbers of the model in a tensor: two in a byte of blocks, none in the scales."""
    if name.endswith("_scales"):
        return 0
    return part.nbytes * 2 if name.endswith("_blocks") else part.nbytes // part.dtype.itemsize

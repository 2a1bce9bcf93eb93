"""`shoal.cluster.checkpoint.inspect`."""

from __future__ import annotations

from pathlib import Path

from shoal.cluster.checkpoint.inspect import summarise
from shoal.workers.checkpoint import open_checkpoint
from shoal.workers.checkpoint.layout import is_expert_tensor


def test_shares_are_what_ranks_read(hf: Path) -> None:
    """The bytes of a share equal those that a worker reading it reads."""
    with open_checkpoint(hf) as checkpoint:
        summary = summarise(checkpoint)
        share = next(share for share in summary.shares if share.ep_size == 2)
        for name in checkpoint.slices:
            if is_expert_tensor(name):
                checkpoint.experts(name, range(share.experts))
            else:
                checkpoint.tensor(name)
        assert share.dense_bytes + share.expert_bytes == checkpoint.bytes_read
    assert [share.ep_size for share in summary.shares] == [1, 2, 4]


def test_uneven_groups_show_the_largest_share(hf: Path) -> None:
    """Where experts do not divide evenly, the share is that of a worker with one more."""
    with open_checkpoint(hf) as checkpoint:
        (share,) = summarise(checkpoint, [3]).shares
    assert share.experts == 2


def test_groups_tensors_by_kind(hf: Path, original: Path) -> None:
    """Tensors that differ only in their layer are one row; both layouts give the same rows; nothing is left out."""
    with open_checkpoint(hf) as one, open_checkpoint(original) as other:
        summary = summarise(one)
        assert summary.kinds == summarise(other).kinds
    assert len(summary.kinds) == 22
    assert sum(kind.count for kind in summary.kinds) == 19 * 2 + 3
    assert sum(kind.nbytes for kind in summary.kinds) == summary.dense_bytes + summary.expert_bytes
    assert summary.files == ((hf / "model.safetensors", (hf / "model.safetensors").stat().st_size),)

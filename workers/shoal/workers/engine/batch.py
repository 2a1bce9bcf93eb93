"""From planned work to the tensors of one step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from shoal.kernels.attention import AttentionBatch
from shoal.workers.engine.scheduler import Work
from shoal.workers.model.model import ModelInput


def build_input(work: Seq[Work], block_size: int, device: torch.device) -> ModelInput:
    """All planned tokens end to end, in the order of `work`. The sequences are not changed; their blocks must
    already be theirs."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    cu_q, context = [0], []
    for w in work:
        sequence, start = w.sequence, w.sequence.computed
        end = start + w.tokens
        ids += sequence.tokens[start:end]
        positions += range(start, end)
        slots += [sequence.blocks[p // block_size] * block_size + p % block_size for p in range(start, end)]
        cu_q.append(len(ids))
        context.append(end)
        if end == len(sequence.tokens):
            logit_rows.append(len(ids) - 1)
    widest = max((len(w.sequence.blocks) for w in work), default=0)
    tables = [w.sequence.blocks + [0] * (widest - len(w.sequence.blocks)) for w in work]
    i32, i64 = torch.int32, torch.int64
    batch = AttentionBatch(
        cu_q=torch.tensor(cu_q, dtype=i32, device=device),
        context_lens=torch.tensor(context, dtype=i32, device=device),
        block_tables=torch.tensor(tables, dtype=i32, device=device).view(len(work), widest),
    )
    return ModelInput(
        ids=torch.tensor(ids, dtype=i64, device=device),
        positions=torch.tensor(positions, dtype=i64, device=device),
        slots=torch.tensor(slots, dtype=i64, device=device),
        batch=batch,
        logit_rows=torch.tensor(logit_rows, dtype=i64, device=device),
    )

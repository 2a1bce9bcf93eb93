"""From planned work to the tensors of one step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from shoal.kernels.attention import AttentionBatch
from shoal.workers.engine.scheduler import Work
from shoal.workers.model.model import KvPlace, ModelInput


def wanted_rows(work: Work) -> range:
    """Which of the work's tokens need logits: those that a new token is sampled after, and, where the prompt's
    log-probabilities are asked for, those inside it. Positions in the sequence."""
    sequence, start = work.sequence, work.sequence.computed
    end = start + work.tokens
    return range(start if sequence.prompt_logprobs else max(start, len(sequence.tokens) - 1), end)


def build_input(work: Seq[Work], block_size: int, device: torch.device) -> ModelInput:
    """All planned tokens end to end, in the order of `work`. The sequences are not changed; their blocks must
    already be theirs."""
    ids: list[int] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    cu_q, context = [0], []
    for w in work:
        sequence, start = w.sequence, w.sequence.computed
        end = start + w.tokens
        ids += sequence.tokens[start:end]
        ids += sequence.drafts[: end - max(start, len(sequence.tokens))]
        positions += range(start, end)
        logit_rows += [p - start + cu_q[-1] for p in wanted_rows(w)]
        cu_q.append(cu_q[-1] + w.tokens)
        context.append(end)
    sequences = [w.sequence for w in work]
    cu, lens = (torch.tensor(x, dtype=torch.int32, device=device) for x in (cu_q, context))
    places = torch.tensor(positions, dtype=torch.int64, device=device)

    def place(tables: list[list[int]]) -> KvPlace:
        widest = max(map(len, tables), default=0)
        table = torch.tensor([t + [0] * (widest - len(t)) for t in tables], dtype=torch.int32, device=device)
        table = table.view(len(tables), widest).clamp_(min=0)  # dropped blocks are out of every window
        rows = torch.repeat_interleave(torch.arange(len(tables), device=device), cu.diff())
        blocks = table[rows, places // block_size].long() if len(ids) else places
        return KvPlace(blocks * block_size + places % block_size, AttentionBatch(cu, lens, table))

    return ModelInput(
        ids=torch.tensor(ids, dtype=torch.int64, device=device),
        positions=places,
        full=place([s.tables.full for s in sequences]),
        sliding=place([s.tables.sliding for s in sequences]),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64, device=device),
    )

"""From planned work to the integers of one step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from shoal.workers.engine.scheduler import Work
from shoal.workers.model.step import PlaceInts, StepInts


def wanted_rows(work: Work) -> range:
    """Which of the work's tokens need logits: those that a new token is sampled after, and, where the prompt's
    log-probabilities are asked for, those inside it. Positions in the sequence."""
    sequence, start = work.sequence, work.sequence.computed
    end = start + work.tokens
    return range(start if sequence.prompt_logprobs else max(start, len(sequence.tokens) - 1), end)


def step_ints(work: Seq[Work], block_size: int) -> StepInts:
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
    places = np.array(positions, dtype=np.int64)
    entries, rows = places // block_size, np.repeat(np.arange(len(work)), [w.tokens for w in work])
    offsets = places - entries * block_size

    def place(tables: list[list[int]]) -> PlaceInts:
        """Numpy, because as many torch operations on arrays this small take half as long again."""
        table = np.zeros((len(tables), max(map(len, tables), default=0)), dtype=np.int32)
        for row, blocks in zip(table, tables, strict=True):
            row[: len(blocks)] = blocks
        np.maximum(table, 0, out=table)  # dropped blocks are out of every window
        return PlaceInts(table[rows, entries].astype(np.int64) * block_size + offsets, table)

    return StepInts(
        ids=np.array(ids, dtype=np.int64),
        positions=places,
        cu_q=np.array(cu_q, dtype=np.int32),
        context_lens=np.array(context, dtype=np.int32),
        full=place([s.tables.full for s in sequences]),
        sliding=place([s.tables.sliding for s in sequences]),
        logit_rows=np.array(logit_rows, dtype=np.int64),
    )

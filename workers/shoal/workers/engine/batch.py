"""From planned work to the integers of one step."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np

from shoal.workers.engine.scheduler import Work
from shoal.workers.model.step import NOTHING_LATE, PlaceInts, StepInts


def wanted_rows(work: Work) -> range:
    """Which of the work's tokens need logits: those that a new token is sampled after, and, where the prompt's
    log-probabilities are asked for, those inside it. Positions in the sequence."""
    sequence, start = work.sequence, work.sequence.started
    first = sequence.prompt_told - 1 if sequence.wants_prompt else sequence.length - 1
    return range(max(start, first), start + work.tokens)


def step_ints(work: Seq[Work], block_size: int, chosen: Mapping[int, int] | None = None) -> StepInts:
    """All planned tokens end to end, in the order of `work`. The sequences are not changed; their blocks must
    already be theirs.

    `chosen`: by id() of a sequence, the place of its last token among those that the step before chose, where only the
    device knows it.
    """
    ids: list[int] = []
    late: list[tuple[int, int]] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    cu_q, context = [0], []
    for w in work:
        sequence, start = w.sequence, w.sequence.started
        end = start + w.tokens
        ids += sequence.tokens[start:end]
        if sequence.owed and end == sequence.length:
            if chosen and id(sequence) in chosen:
                late.append((len(ids), chosen[id(sequence)]))
            ids.append(0)  # without a late one nothing was chosen: the sequence ends, and nobody looks at this
        else:
            ids += sequence.drafts[: end - max(start, len(sequence.tokens))]
        positions += range(start, end)
        logit_rows += [p - start + cu_q[-1] for p in wanted_rows(w)]
        cu_q.append(cu_q[-1] + w.tokens)
        context.append(end)
    sequences = [w.sequence for w in work]
    places = np.array(positions, dtype=np.int64)
    entries, rows = places // block_size, np.repeat(np.arange(len(work)), [w.tokens for w in work])
    offsets = places - entries * block_size

    def place(tables: list[array[int]]) -> PlaceInts:
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
        late=np.array(late, dtype=np.int64).reshape(len(late), 2).T if late else NOTHING_LATE,
    )

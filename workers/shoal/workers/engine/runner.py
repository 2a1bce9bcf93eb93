"""Runs planned work: model, then sampling."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.workers.constraint.ahead import Ahead
from shoal.workers.engine.batch import step_ints, wanted_rows
from shoal.workers.engine.scheduler import Work
from shoal.workers.engine.sequence import Sequence
from shoal.workers.errors import ConstraintError
from shoal.workers.model.decoder import Decoder
from shoal.workers.model.model import Model
from shoal.workers.model.sampling import Sampled, logprobs_of, sample, uniform
from shoal.workers.model.step import StepInts
from shoal.workers.model.upload import Upload

if TYPE_CHECKING:  # as in sequence.py
    from shoal.workers.constraint.cursor import Cursor
    from shoal.workers.constraint.vocabulary import Ids

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Result:
    """What one piece of work gave: the new tokens (several when drafts were right, none inside a prompt), and the
    log-probabilities of prompt tokens where asked for. `dead_end` says why no token can follow them."""

    work: Work
    sampled: tuple[Sampled, ...]
    prompt: tuple[Sampled, ...] = ()
    dead_end: str = ""


class Runner:
    """Runs planned work on one rank's model."""

    def __init__(self, model: Model, decoder: Decoder | None = None) -> None:
        """With a `decoder`, steps of one token a sequence are replayed where they can be."""
        self.model = model
        self._decoder = decoder
        self._upload = Upload(model.target.device)
        self._ahead = Ahead()

    def run(self, work: Seq[Work]) -> list[Result]:
        """Compute the planned tokens and sample after every sequence's last one.

        The sequences are not changed, except that their keys and values are written to their blocks and that their
        constraints take the sampled tokens. With no work the rank still takes part in the exchange. Raises
        ExchangeError; then nothing was sampled.
        """
        with self.model.stopwatch.phase("batch"):
            step = step_ints(work, self.model.kv.plan.block_size)
        sampling = [w.sequence for w in work if w.sequence.computed + w.tokens >= len(w.sequence.tokens)]
        with self._ahead.finding([s.constraint for s in sampling if s.constraint is not None]):
            logits = self._logits(step)
        with self.model.stopwatch.phase("sampling"):
            rows = logits.cpu().numpy()
            results, start = [], 0
            for w in work:
                wanted = wanted_rows(w)
                results.append(_result(w, wanted.start, rows[start : start + len(wanted)]))
                start += len(wanted)
            return results

    def _logits(self, step: StepInts) -> Tensor:
        """Of the wanted rows, fp32 [L, V]."""
        x = None if self._decoder is None else self._decoder.hidden(step)
        if x is not None:
            return self.model.unembed(x)
        with self.model.stopwatch.phase("batch"):
            tensors = step.upload(self._upload)
        return self.model.forward(tensors)


def _result(work: Work, first: int, rows: NDArray[np.float32]) -> Result:
    """`rows[i]` are the logits after the token at position first + i."""
    sequence = work.sequence
    inside = max(0, min(len(rows), len(sequence.tokens) - 1 - first))
    prompt = tuple(
        logprobs_of(rows[i], sequence.tokens[first + i + 1], sequence.sampling.top_logprobs) for i in range(inside)
    )
    sampled: list[Sampled] = []
    constraint = sequence.constraint
    for i, row in enumerate(rows[inside:]):
        if constraint is not None and constraint.ended:
            break
        try:
            sampled.append(_sample(sequence, row, [token.id for token in sampled]))
        except ConstraintError as error:
            return Result(work, tuple(sampled), prompt, str(error))
        if constraint is not None:
            taken = constraint.advance(sampled[-1].id)
            assert taken, f"token {sampled[-1].id} was sampled against the constraint"
        if i >= len(sequence.drafts) or sampled[-1].id != sequence.drafts[i]:
            break  # the next row was computed after a wrong guess
    return Result(work, tuple(sampled), prompt)


def _sample(sequence: Sequence, row: Row, accepted: list[int]) -> Sampled:
    params, stop, given = sequence.sampling, sequence.stop, sequence.given_length
    early = sequence.num_generated + len(accepted) < stop.min_tokens
    masked: Seq[int] | Ids = tuple(stop.stop_token_ids) if early else ()
    greedy = params.temperature == 0.0
    allowed, barred = None, sequence.constraint.barred() if sequence.constraint is not None else None
    if barred is not None:
        masked = np.union1d(barred, masked) if len(masked) else barred
    elif sequence.constraint is not None:
        allowed = _allowed(sequence.constraint, masked)
    if allowed is not None and len(allowed) == 1 and not params.logprobs:
        return Sampled(int(allowed[0]))
    if greedy and allowed is None and not (params.adjusts_logits or params.logprobs):
        best = int(row.argmax())
        if not len(masked) or best not in masked:
            return Sampled(best)
    draw = 0.0 if greedy else uniform(sequence.seed, sequence.key.choice, len(sequence.tokens) + len(accepted))
    if not params.adjusts_logits:
        return sample(row, params, draw, masked=masked, allowed=allowed)
    return sample(row, params, draw, sequence.tokens[:given], sequence.tokens[given:] + accepted, masked, allowed)


def _allowed(constraint: Cursor, masked: Seq[int] | Ids) -> Ids:
    """What the constraint allows, without `masked` unless nothing else is left. Raises ConstraintError."""
    allowed = constraint.allowed()
    kept = allowed[~np.isin(allowed, masked)] if len(masked) else allowed
    return kept if len(kept) else allowed

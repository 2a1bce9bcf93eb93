"""Runs planned work: model, then sampling."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from shoal.workers.engine.batch import build_input
from shoal.workers.engine.scheduler import Work
from shoal.workers.engine.sequence import Sequence
from shoal.workers.model.model import Model
from shoal.workers.model.sampling import Sampled, sample, uniform


class Runner:
    """Runs planned work on one rank's model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, work: Seq[Work]) -> list[tuple[Sequence, Sampled]]:
        """Compute the planned tokens and sample for every sequence whose last token was among them.

        The sequences are not changed, except that their keys and values are written to their blocks. With no work
        the rank still takes part in the exchange. Raises ExchangeError.
        """
        ready = [w.sequence for w in work if w.tokens == w.sequence.pending]
        logits = self.model.forward(build_input(work, self.model.kv.block_size, self.model.target.device))
        with self.model.stopwatch.phase("sampling"):
            rows = logits.cpu().numpy()
            return [(sequence, _sample(sequence, rows[i])) for i, sequence in enumerate(ready)]


def _sample(sequence: Sequence, row: NDArray[np.float32]) -> Sampled:
    params, stop, tokens = sequence.sampling, sequence.stop, sequence.tokens
    masked = tuple(stop.stop_token_ids) if sequence.num_generated < stop.min_tokens else ()
    if params.temperature == 0.0 and not (params.adjusts_logits or params.logprobs or masked):
        return Sampled(int(row.argmax()))
    draw = 0.0 if params.temperature == 0.0 else uniform(sequence.seed, sequence.key.choice, len(tokens))
    given = sequence.given_length
    return sample(row, params, draw, tokens[:given], tokens[given:], masked)

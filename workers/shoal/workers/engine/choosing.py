"""Which rows of logits a step's tokens are chosen from on the device, how, and what came of it.

A row is chosen from on the device or on the host by its own sequence's parameters alone, never by its neighbours':
the two round differently, and a replay elsewhere must choose the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels import sampling as kernel
from shoal.workers.engine.masks import Bits, Masks
from shoal.workers.engine.sequence import Sequence
from shoal.workers.errors import ConstraintError
from shoal.workers.model.download import Download, Fetch
from shoal.workers.model.sampling import Sampled, SamplingParams, uniform
from shoal.workers.model.upload import Ints, Upload


def on_device(sequence: Sequence) -> bool:
    """Whether the device's sampler can choose this sequence's tokens: it knows no penalties and no bias."""
    return not sequence.sampling.adjusts_logits


@dataclass(slots=True)
class Asked:
    """What is asked of the device in one step: row `rows[i]` of the logits is chosen from as `settings[i]` say."""

    rows: list[int] = field(default_factory=list)
    settings: list[tuple[int, ...]] = field(default_factory=list)
    masks: list[Bits] = field(default_factory=list)
    top_k: bool = False
    top_p: bool = False
    logprobs: int | None = None
    dead_ends: dict[int, ConstraintError] = field(default_factory=dict)
    """Rows after which no token may follow, with the reason."""


_NOTHING = Asked()


class Chooser:
    """Asks the device's sampler. Belongs to one runner."""

    def __init__(self, vocab_size: int, upload: Upload, fetch: Fetch) -> None:
        self._masks = Masks(vocab_size)
        self._upload = upload
        self._fetch = fetch

    def ask(self, asked: Asked, sequence: Sequence, rows: Seq[int]) -> None:
        """Add the rows behind the sequence's last token and its drafts.

        Row i is asked as it must be if the first i drafts are right: otherwise nobody looks at what is chosen there.
        """
        params, cursor = sequence.sampling, sequence.constraint
        for i, row in enumerate(rows):
            if cursor is not None and cursor.ended:
                break
            early = sequence.num_generated + i < sequence.stop.min_tokens
            try:
                mask = self._masks.row(asked.masks, cursor, sequence.stop.stop_token_ids if early else frozenset())
            except ConstraintError as error:
                asked.dead_ends[row] = error
                break
            greedy = params.temperature == 0.0
            draw = 0.0 if greedy else uniform(sequence.seed, sequence.key.choice, len(sequence.tokens) + i)
            asked.rows.append(row)
            asked.settings.append(
                kernel.settings(params.temperature, draw, params.top_k, params.top_p, params.min_p, mask)
            )
            if cursor is not None and i + 1 < len(rows):
                cursor = cursor.copy() if i == 0 else cursor
                if not cursor.advance(sequence.drafts[i]):
                    break  # a wrong guess: nothing behind it counts
        asked.top_k |= params.top_k > 0
        asked.top_p |= params.top_p < 1.0
        if params.logprobs:
            asked.logprobs = max(asked.logprobs or 0, params.top_logprobs)

    def show(self, logits: Tensor) -> Chosen:
        """Bring all rows to the host, which chooses by itself."""
        return Chosen(_NOTHING, range(logits.shape[0]), self._fetch((logits,)), None)

    def choose(self, asked: Asked, logits: Tensor, seen: Seq[int]) -> Chosen:
        """Launch it, and bring the rows `seen` of the logits to the host besides. Waits for nothing."""
        some_asked, some_seen = (0 < len(rows) < logits.shape[0] for rows in (asked.rows, seen))
        arrays: list[Ints] = []
        if asked.rows:
            arrays.append(np.array(asked.settings, dtype=np.int64))
        if some_asked:
            arrays.append(np.array(asked.rows, dtype=np.int64))
        if some_seen:
            arrays.append(np.array(seen, dtype=np.int64))
        if asked.masks:
            arrays.append(np.stack(asked.masks))
        tensors = iter(self._upload(arrays) if arrays else ())
        settings = next(tensors) if asked.rows else None
        mine = logits[next(tensors)] if some_asked else logits
        wanted = [logits[next(tensors)] if some_seen else logits[: len(seen)]]
        ids = None
        if settings is not None:
            found = kernel.sample(
                mine, settings, next(tensors, None), top_k=asked.top_k, top_p=asked.top_p, logprobs=asked.logprobs
            )
            ids = found.ids
            wanted += found if asked.logprobs is not None else found[:1]
        return Chosen(asked, {row: i for i, row in enumerate(seen)}, self._fetch(wanted), ids)


class Chosen:
    """The device's choices, and what the host chooses from itself. Rows are those of the step's logits."""

    def __init__(self, asked: Asked, seen: dict[int, int] | range, download: Download, ids: Tensor | None) -> None:
        """`seen` tells where each row came that was to be seen."""
        self.ids = ids
        """What was chosen, int64 on the device, at the `place` of each row; None: nothing was asked for."""
        self.place = {row: i for i, row in enumerate(asked.rows)}
        self._dead_ends = asked.dead_ends
        self._seen = seen
        self._download = download
        self._rows: NDArray[np.float32] | None = None
        self._found: list[list[Any]] = []

    def row(self, row: int) -> NDArray[np.float32]:
        """The logits of one of the rows that were to be seen, [V]. Waits for the device."""
        found: NDArray[np.float32] = self._told()[self._seen[row]]
        return found

    def token(self, row: int, params: SamplingParams) -> Sampled:
        """What was chosen from `row`, with what `params` ask to know of it. Waits for the device.

        Raises ConstraintError where nothing may follow.
        """
        if row in self._dead_ends:
            raise self._dead_ends[row]
        self._told()
        i = self.place[row]
        ids, *more = self._found
        if not params.logprobs:
            return Sampled(ids[i])
        logit, maximum, total, top_ids, top_logits = (part[i] for part in more)
        likeliest = zip(top_ids[: params.top_logprobs], top_logits, strict=False)
        return Sampled(
            ids[i],
            kernel.logprob(logit, maximum, total),
            tuple((token, kernel.logprob(value, maximum, total)) for token, value in likeliest if token >= 0),
        )

    def _told(self) -> NDArray[np.float32]:
        if self._rows is None:
            rows, *found = self._download.wait()
            self._rows, self._found = rows.numpy(), [tensor.tolist() for tensor in found]
        return self._rows

"""Runs planned work in three parts, so that a host need not stand still while a device computes.

launch    the model's step is on its way
choose    what may be chosen is known: choices, and what the host wants to see, are on their way
collect   they have come
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.workers.constraint.ahead import Ahead
from shoal.workers.engine.batch import step_ints, wanted_rows
from shoal.workers.engine.choosing import Asked, Chooser, Chosen, on_device
from shoal.workers.engine.loads import LoadBook
from shoal.workers.engine.scheduler import Work
from shoal.workers.engine.sequence import Sequence
from shoal.workers.errors import ConstraintError
from shoal.workers.model.decoder import Decoder
from shoal.workers.model.download import Download, Fetch
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


@dataclass(slots=True)
class Part:
    """One piece of work in a launched step: its rows of the step's logits."""

    work: Work
    after: int  # place in the sequence behind its first row
    prompt: range  # those before a token that is known, whose log-probability is wanted
    open: range  # those that a new token is chosen from
    on_device: bool  # who chooses
    owes: int = 0  # tokens that a later step may compute before the host knows them

    def take_off(self, max_context: int) -> None:
        """It is launched: its sequence has tokens under way."""
        sequence = self.work.sequence
        last = sequence.num_generated + sequence.owed + 1 >= sequence.stop.max_tokens
        last |= sequence.length + 1 >= max_context
        self.owes = int(bool(self.open) and not last)
        sequence.flying += self.work.tokens
        sequence.owed += self.owes

    def land(self) -> None:
        """It is over: what came of it is about to be told."""
        self.work.sequence.flying -= self.work.tokens
        self.work.sequence.owed -= self.owes

    @property
    def seen(self) -> Seq[int]:
        """What the host wants to see."""
        return self.prompt if self.on_device else range(self.prompt.start, self.open.stop)


@dataclass(slots=True)
class Flight:
    """A step that was launched and whose results have not come yet."""

    parts: tuple[Part, ...]
    logits: Tensor | None  # until choices are on their way: the next step's take as much memory again
    chosen: Chosen | None = None

    @property
    def told_by_device(self) -> bool:
        """Whether the device knows every new token by itself, so that it may go on before the host knows them."""
        return all(part.on_device for part in self.parts if part.open)

    def places(self) -> dict[int, int]:
        """By id() of each sequence, the place of its new token among those that were chosen."""
        place = self.chosen.place if self.chosen is not None else {}
        rows = ((part.work.sequence, part.open[0]) for part in self.parts if part.open)
        return {id(sequence): place[row] for sequence, row in rows if row in place}


class Runner:
    """Runs planned work on one rank's model."""

    def __init__(self, model: Model, decoder: Decoder | None = None, fetch: Fetch = Download) -> None:
        """With a `decoder`, steps of one token a sequence are replayed where they can be."""
        self.model = model
        self._decoder = decoder
        self._upload = Upload(model.target.device)
        self._chooser = Chooser(model.config.vocab_size, Upload(model.target.device), fetch)
        self._device = model.target.sampler == "device"
        self._ahead = Ahead()
        self.loads = LoadBook(model, fetch)

    def launch(self, work: Seq[Work], before: Flight | None = None) -> Flight:
        """Begin to compute the planned tokens; those that the step `before` chose need not be known to the host.

        The sequences are not changed, except that their keys and values are written to their blocks. With no work the
        rank still takes part in the exchange. Raises ExchangeError; then nothing was begun.
        """
        with self.model.stopwatch.phase("batch"):
            step = step_ints(work, self.model.kv.plan.block_size, before.places() if before else None)
        parts, first = [], 0
        for w in work:
            parts.append(self._part(w, first))
            first = parts[-1].open.stop
        with self._ahead.finding(
            [p.work.sequence.constraint for p in parts if p.open and p.work.sequence.constraint and not p.on_device]
        ):
            chosen = before.chosen.ids if before is not None and before.chosen is not None else None
            return Flight(tuple(parts), self._logits(step, chosen))

    def choose(self, flight: Flight) -> None:
        """Begin to choose after every sequence's last token, which must be known by now. One that has ended since the
        launch is left out."""
        logits, flight.logits = flight.logits, None
        assert logits is not None, "that was asked for already"
        self.loads.begin()
        if not self._device:
            flight.chosen = self._chooser.show(logits)
            return
        with self.model.stopwatch.phase("sampling"):
            asked, seen = Asked(), list[int]()
            for part in flight.parts:
                if part.work.sequence.finish is not None:
                    continue
                seen += part.seen
                if part.on_device:
                    self._chooser.ask(asked, part.work.sequence, part.open)
            flight.chosen = self._chooser.choose(asked, logits, seen)

    def collect(self, flight: Flight) -> list[Result]:
        """Wait for what was chosen, of those that have not ended. The sequences' constraints take it; else they are not
        changed."""
        assert flight.chosen is not None, "nothing was chosen yet"
        with self.model.stopwatch.phase("sampling"):
            results = [_result(p, flight.chosen) for p in flight.parts if p.work.sequence.finish is None]
            self.loads.land()
            return results

    def _part(self, work: Work, first: int) -> Part:
        """`first`: its first row of the logits."""
        wanted, sequence = wanted_rows(work), work.sequence
        inside = max(0, min(len(wanted), sequence.length - 1 - wanted.start))
        prompt = range(first, first + inside)
        on_its_own = self._device and on_device(sequence)
        return Part(work, wanted.start + 1, prompt, range(prompt.stop, first + len(wanted)), on_its_own)

    def _logits(self, step: StepInts, chosen: Tensor | None) -> Tensor:
        """Of the wanted rows, fp32 [L, V]."""
        x = None if self._decoder is None else self._decoder.hidden(step, chosen)
        if x is not None:
            return self.model.unembed(x)
        with self.model.stopwatch.phase("batch"):
            tensors = step.upload(self._upload, chosen)
        return self.model.forward(tensors)


def _result(part: Part, chosen: Chosen) -> Result:
    sequence, params = part.work.sequence, part.work.sequence.sampling
    prompt = tuple(
        logprobs_of(chosen.row(row), sequence.tokens[part.after + i], params.top_logprobs)
        for i, row in enumerate(part.prompt)
    )
    sampled: list[Sampled] = []
    constraint = sequence.constraint
    for i, row in enumerate(part.open):
        if constraint is not None and constraint.ended:
            break
        try:
            if part.on_device:
                sampled.append(chosen.token(row, params))
            else:
                sampled.append(_sample(sequence, chosen.row(row), [token.id for token in sampled]))
        except ConstraintError as error:
            return Result(part.work, tuple(sampled), prompt, str(error))
        if constraint is not None:
            taken = constraint.advance(sampled[-1].id)
            assert taken, f"token {sampled[-1].id} was sampled against the constraint"
        if i >= len(sequence.drafts) or sampled[-1].id != sequence.drafts[i]:
            break  # the next row was computed after a wrong guess
    return Result(part.work, tuple(sampled), prompt)


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

"""What an engine tells of its work."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.workers.engine.sequence import Finish, Sequence
from shoal.workers.experts.exchange import Wish
from shoal.workers.model.sampling import Sampled


@dataclass(frozen=True, slots=True)
class Output:
    """One new token of one sequence, or its end without one (cancelled)."""

    sequence: Sequence
    offset: int
    token: Sampled | None
    finish: Finish | None
    prompt: tuple[Sampled, ...] = ()  # log-probabilities of prompt tokens, from the second on, where asked for
    looping: bool = False  # the sequence repeats itself endlessly
    why: str = ""  # of a dead end


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. `idle`: no rank had work, so all may sleep. `wishes`: what some rank asked of all; with
    PAUSE among them the step was not run. `outputs` may be those of the step before, or of both."""

    step: int
    outputs: tuple[Output, ...]
    idle: bool
    wishes: Wish


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

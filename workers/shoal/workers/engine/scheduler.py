"""Which tokens are computed in the next step: a pure function of the sequences and the free blocks.

Order: every decode first (one token each, so a long prompt never stalls a stream), then prompts already begun, then
new ones while the batch has room and their whole prompt fits. When a block is missing, the least important running
sequence is preempted: its blocks are freed and it is computed again later, with the same result bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from shoal.workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step and the whole batch may use."""

    max_batch_size: int
    max_batch_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the next `tokens` tokens of `sequence`, taking `new_blocks` blocks for them."""

    sequence: Sequence
    tokens: int
    new_blocks: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: preempt first, then admit, then compute."""

    preempted: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...]
    work: tuple[Work, ...]

    @property
    def num_tokens(self) -> int:
        return sum(work.tokens for work in self.work)


def importance(sequence: Sequence) -> tuple[int, int]:
    """Sort key: higher priority first, then first come first served."""
    return (-sequence.priority, sequence.arrival)


def plan_step(waiting: Seq[Sequence], running: Seq[Sequence], free_blocks: int, limits: Limits) -> Plan:
    """Changes nothing. A sequence that fits the cache alone is never starved: the most important one runs first."""
    alive = sorted(running, key=importance)
    decodes_first = sorted(alive, key=lambda s: s.pending > 1)  # stable: importance within each half
    budget, free = limits.max_batch_tokens, free_blocks
    work: dict[int, Work] = {}
    preempted: list[Sequence] = []
    for sequence in decodes_first:
        if sequence in preempted:
            continue
        tokens = min(sequence.pending, budget)
        if tokens == 0:
            continue
        blocks = _blocks_missing(sequence, tokens, limits.block_size)
        while blocks > free:
            victim = next(s for s in reversed(alive) if s not in preempted)
            preempted.append(victim)
            done = work.pop(id(victim), None)
            free += len(victim.blocks) + (done.new_blocks if done else 0)
            budget += done.tokens if done else 0
            if victim is sequence:
                break
        else:
            work[id(sequence)] = Work(sequence, tokens, blocks)
            free -= blocks
            budget -= tokens
    admitted: list[Sequence] = []
    room = limits.max_batch_size - len(alive) + len(preempted)
    for sequence in sorted(waiting, key=importance) if not preempted else ():
        whole = _blocks_missing(sequence, sequence.pending, limits.block_size)
        if not room or not budget or whole > free:
            break  # nobody overtakes: a large request is not starved by small ones
        tokens = min(sequence.pending, budget)
        blocks = _blocks_missing(sequence, tokens, limits.block_size)
        work[id(sequence)] = Work(sequence, tokens, blocks)
        admitted.append(sequence)
        free -= whole
        budget -= tokens
        room -= 1
    return Plan(tuple(preempted), tuple(admitted), tuple(work.values()))


def _blocks_missing(sequence: Sequence, tokens: int, block_size: int) -> int:
    return max(0, -(-(sequence.computed + tokens) // block_size) - len(sequence.blocks))

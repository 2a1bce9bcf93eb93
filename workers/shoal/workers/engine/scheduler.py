"""Which tokens are computed in the next step: a pure function of what the sequences demand and what is free.

Order: every decode first (one token each, so a long prompt never stalls a stream), then prompts already begun, then
new ones while the batch has room and their whole prompt fits; drafts take what is left of the budget, or of the step's
preferred size, where the device runs some sizes better than others. When a block is missing, the least important
running sequence is preempted: its blocks are released and it is computed again later, with the same result bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from shoal.workers.engine.sequence import Sequence
from shoal.workers.kv.manager import Blocks

NONE = Blocks(0, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step and the whole batch may use."""

    max_batch_size: int
    max_batch_tokens: int
    block_size: int
    preferred_sizes: tuple[int, ...] = ()
    """Tokens per step that the device runs best, ascending: what a step is filled up or padded to."""

    def preferred(self, tokens: int) -> int:
        """The smallest preferred size that holds `tokens`; 0: there is none."""
        return next((size for size in self.preferred_sizes if tokens <= size <= self.max_batch_tokens), 0)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one sequence asks for."""

    sequence: Sequence
    computed: int  # tokens that need not be computed, those of a found prefix included
    table: int  # table entries it has, those of a found prefix included
    gives: Blocks = NONE  # what preempting it makes available
    copies: Blocks = NONE  # shared blocks that it must copy before it writes
    pinned: Blocks = NONE  # evictable blocks that its found prefix takes

    @property
    def pending(self) -> int:
        """Tokens to compute: 1 while decoding."""
        return self.sequence.length - self.computed

    def importance(self) -> tuple[int, int]:
        """Sort key: higher priority first, then first come first served."""
        return (-self.sequence.priority, self.sequence.arrival)


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the next `tokens` tokens of `sequence`; beyond its pending ones they are drafts."""

    sequence: Sequence
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: preempt first, then admit, then compute."""

    preempted: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...]
    work: tuple[Work, ...]
    size: int = 0
    """The preferred size of this step: as many tokens cost what its own cost. 0: its own number."""

    @property
    def num_tokens(self) -> int:
        return sum(work.tokens for work in self.work)


def plan_step(waiting: Seq[Demand], running: Seq[Demand], free: Blocks, limits: Limits) -> Plan:
    """Changes nothing. A sequence that fits the cache alone is never starved: the most important one runs first."""
    state = _State(free, limits.max_batch_tokens, limits.block_size)
    alive = sorted(running, key=Demand.importance)
    for demand in sorted(alive, key=lambda d: d.pending > 1):  # stable: importance within each half
        _continue(state, demand, alive)
    admitted = [] if state.preempted else _admit(state, waiting, limits.max_batch_size - len(alive))
    size = limits.preferred(sum(state.tokens.values())) if state.tokens else 0
    if size:
        state.budget = min(state.budget, size - sum(state.tokens.values()))
    for demand in alive:
        state.add_drafts(demand)
    work = tuple(Work(state.demands[name].sequence, tokens) for name, tokens in state.tokens.items())
    return Plan(tuple(d.sequence for d in state.preempted), tuple(d.sequence for d in admitted), work, size)


class _State:
    """What is left while a plan is made."""

    def __init__(self, free: Blocks, budget: int, block_size: int) -> None:
        self.free = free
        self.budget = budget
        self.block_size = block_size
        self.tokens: dict[int, int] = {}  # planned tokens, keyed by id(sequence)
        self.demands: dict[int, Demand] = {}
        self.preempted: list[Demand] = []

    def cost(self, demand: Demand, tokens: int) -> Blocks:
        """Blocks that computing `tokens` more tokens takes."""
        new = max(0, -(-(demand.computed + tokens) // self.block_size) - demand.table)
        copies, pinned = demand.copies, demand.pinned
        return Blocks(new + copies.full + pinned.full, new + copies.sliding + pinned.sliding)

    def fits(self, cost: Blocks) -> bool:
        return cost.full <= self.free.full and cost.sliding <= self.free.sliding

    def spend(self, demand: Demand, tokens: int, cost: Blocks) -> None:
        self.tokens[id(demand.sequence)] = tokens
        self.demands[id(demand.sequence)] = demand
        self.budget -= tokens
        self.free = Blocks(self.free.full - cost.full, self.free.sliding - cost.sliding)

    def preempt(self, demand: Demand) -> None:
        self.preempted.append(demand)
        tokens = self.tokens.pop(id(demand.sequence), 0)
        cost = self.cost(demand, tokens) if tokens else Blocks(0, 0)
        self.budget += tokens
        self.free = Blocks(*(f + g + c for f, g, c in zip(self.free, demand.gives, cost, strict=True)))

    def add_drafts(self, demand: Demand) -> None:
        """Verify as many drafts as budget and blocks allow; they are worth no preemption."""
        name = id(demand.sequence)
        if not demand.sequence.drafts or self.tokens.get(name) != demand.pending:
            return
        extra = min(len(demand.sequence.drafts), self.budget)
        before = self.cost(demand, demand.pending)
        while extra:
            after = self.cost(demand, demand.pending + extra)
            more = Blocks(after.full - before.full, after.sliding - before.sliding)
            if self.fits(more):
                self.spend(demand, extra, more)
                self.tokens[name] = demand.pending + extra
                return
            extra -= 1


def _continue(state: _State, demand: Demand, alive: list[Demand]) -> None:
    """Plan the next tokens of a running sequence, preempting others for their blocks if need be."""
    if demand in state.preempted:
        return
    tokens = min(demand.pending, state.budget)
    if tokens == 0:
        return
    cost = state.cost(demand, tokens)
    while not state.fits(cost):
        victim = next(d for d in reversed(alive) if d not in state.preempted)
        state.preempt(victim)
        if victim is demand:
            return
    state.spend(demand, tokens, cost)


def _admit(state: _State, waiting: Seq[Demand], room: int) -> list[Demand]:
    """Begin new sequences in order. Nobody overtakes, so a large request is not starved by small ones."""
    admitted: list[Demand] = []
    for demand in sorted(waiting, key=Demand.importance):
        tokens = min(demand.pending, state.budget)
        whole, first = state.cost(demand, demand.pending), state.cost(demand, tokens)
        if not tokens or len(admitted) >= room or not state.fits(Blocks(whole.full, first.sliding)):
            break
        state.spend(demand, tokens, Blocks(whole.full, first.sliding))
        admitted.append(demand)
    return admitted

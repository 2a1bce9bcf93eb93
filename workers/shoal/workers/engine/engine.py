"""The engine of one rank: many sequences over one model. It knows token ids only."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from shoal.workers.engine.blocks import BlockPool
from shoal.workers.engine.runner import Runner
from shoal.workers.engine.scheduler import Limits, Plan, plan_step
from shoal.workers.engine.sequence import Finish, Sequence, SequenceKey
from shoal.workers.engine.stopping import finish_after, replay_tail
from shoal.workers.errors import OverloadedError, RequestError
from shoal.workers.experts.exchange import Exchange
from shoal.workers.model.model import Model
from shoal.workers.model.sampling import Sampled


@dataclass(frozen=True, slots=True)
class Output:
    """One new token of one sequence, or its end without one (cancelled)."""

    sequence: Sequence
    offset: int
    token: Sampled | None
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. `idle`: no rank had work, so all may sleep. `stopping`: some rank leaves after this step."""

    step: int
    outputs: tuple[Output, ...]
    idle: bool
    stopping: bool


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine."""

    batch: Limits
    max_waiting: int
    max_context: int


@dataclass(slots=True)
class Engine:
    """Schedule, run, commit. One thread calls `step`; `submit` and `cancel` are called from that thread too."""

    model: Model
    exchange: Exchange
    limits: EngineLimits
    token_bytes: Seq[bytes]
    counters: Counters = field(default_factory=Counters)
    next_step: int = 0
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    _arrivals: int = 0
    blocks: BlockPool = field(init=False)
    _runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = BlockPool(self.model.kv.num_blocks)
        self._runner = Runner(self.model)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def check(self, sequence: Sequence, backlog: int = 0) -> None:
        """Raise RequestError when the sequence can never be served, OverloadedError when not now. Thread-safe;
        `backlog` sequences were taken and not yet submitted."""
        excess = len(sequence.tokens) + 1 - self.limits.max_context
        if excess > 0:
            raise RequestError(
                f"the prompt of {len(sequence.tokens)} tokens is {excess} too long: "
                f"a sequence holds at most {self.limits.max_context}, one of them generated"
            )
        if len(self.waiting) + backlog >= self.limits.max_waiting:
            raise OverloadedError(f"{len(self.waiting) + backlog} sequences wait already")

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence that `check` let pass."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        replay_tail(sequence, self.token_bytes)
        self.waiting.append(sequence)

    def cancel(self, request_id: str, attempt: int | None = None) -> list[Output]:
        """End all choices of a request now (of `attempt`, if given). Unknown names end nothing."""
        ended = [
            s for s in (*self.waiting, *self.running) if s.key.request_id == request_id and attempt in (None, s.attempt)
        ]
        return [self._end(sequence, Finish.CANCELLED) for sequence in ended]

    def forget_stream(self, stream: str) -> None:
        """End every sequence whose listener is gone."""
        for sequence in [s for s in (*self.waiting, *self.running) if s.stream == stream]:
            self._end(sequence, Finish.CANCELLED)

    def expire(self, now: float) -> list[Output]:
        """End every sequence whose deadline (unix seconds) has passed."""
        late = [s for s in (*self.waiting, *self.running) if s.deadline and s.deadline <= now]
        return [self._end(sequence, Finish.CANCELLED) for sequence in late]

    def step(self, stopping: bool = False) -> StepResult:
        """One step of the whole group: every rank calls it together.

        Raises ExchangeError when a rank fails; nothing is committed then, and the engine needs a new exchange.
        """
        plan = self._schedule()
        agreed = self.exchange.agree(self.next_step, plan.num_tokens, stopping)
        sampled = self._runner.run(plan.work) if agreed.total_tokens else []
        outputs = self._commit(plan, sampled)
        return StepResult(self.next_step - 1, outputs, agreed.total_tokens == 0, agreed.stopping)

    def drop_all(self) -> list[Sequence]:
        """Forget every sequence and free its blocks: the exchange broke or the worker stops."""
        dropped = [*self.waiting, *self.running]
        for sequence in self.running:
            self._free(sequence)
        self.waiting.clear()
        self.running.clear()
        return dropped

    def find(self, key: SequenceKey) -> Sequence | None:
        """The live sequence of that name."""
        return next((s for s in (*self.waiting, *self.running) if s.key == key), None)

    def check_integrity(self) -> None:
        """Every block has one owner or is free; waiting sequences own none."""
        assert not any(s.blocks or s.computed for s in self.waiting), "a waiting sequence owns blocks"
        self.blocks.check_integrity(b for s in self.running for b in s.blocks)

    def _schedule(self) -> Plan:
        plan = plan_step(self.waiting, self.running, self.blocks.num_free, self.limits.batch)
        for sequence in plan.preempted:
            self._free(sequence)
            self.running.remove(sequence)
            self.waiting.append(sequence)
            self.counters.preemptions += 1
        for sequence in plan.admitted:
            self.waiting.remove(sequence)
            self.running.append(sequence)
        for work in plan.work:
            work.sequence.blocks += self.blocks.allocate(work.new_blocks)
        return plan

    def _commit(self, plan: Plan, sampled: Iterable[tuple[Sequence, Sampled]]) -> tuple[Output, ...]:
        self.next_step += 1
        self.counters.steps += 1
        for work in plan.work:
            work.sequence.computed += work.tokens
            self.counters.prompt_tokens += min(
                work.tokens, max(0, work.sequence.prompt_length - work.sequence.computed + work.tokens)
            )
        outputs = []
        for sequence, token in sampled:
            offset = sequence.num_generated
            sequence.tokens.append(token.id)
            self.counters.generated_tokens += 1
            finish = finish_after(sequence, self.limits.max_context, self.token_bytes)
            if finish is not None:
                self._end(sequence, finish)
            outputs.append(Output(sequence, offset, token, finish))
        return tuple(outputs)

    def _end(self, sequence: Sequence, finish: Finish) -> Output:
        sequence.finish = finish
        if sequence in self.running:
            self._free(sequence)
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        return Output(sequence, sequence.num_generated, None, finish)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0

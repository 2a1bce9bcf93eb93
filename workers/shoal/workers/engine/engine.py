"""The engine of one rank: many sequences over one model. It knows token ids only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from shoal.workers.engine.drafts import NgramIndex
from shoal.workers.engine.loads import Loads
from shoal.workers.engine.output import Counters, Output, StepResult
from shoal.workers.engine.runner import Flight, Result, Runner
from shoal.workers.engine.scheduler import Demand, Limits, Plan, plan_step
from shoal.workers.engine.sequence import Finish, Sequence, SequenceKey
from shoal.workers.engine.stopping import finish_after, replay_tail
from shoal.workers.errors import OverloadedError, RequestError
from shoal.workers.experts.exchange import Exchange, Wish
from shoal.workers.kv.manager import NO_HIT, Blocks, CopyBlock, Hit, KvManager
from shoal.workers.model.decoder import Decoder
from shoal.workers.model.model import Model


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine."""

    batch: Limits
    max_waiting: int
    max_context: int
    speculative_tokens: int = 0
    """Most tokens guessed ahead for one sequence; 0 guesses none. The output is the same."""
    overlap: bool = False
    """Launch a step before the host knows what the one before it chose, where the device goes on by itself."""


@dataclass(slots=True)
class Engine:
    """Schedule, run, commit. One thread calls `step`; `submit` and `cancel` are called from that thread too.

    Where steps overlap, the next one is scheduled and launched before the last is committed: it begins with tokens that
    only the device knows yet. Of a sequence that turns out to have ended it is dropped.
    """

    model: Model
    exchange: Exchange
    kv: KvManager
    limits: EngineLimits
    token_bytes: Seq[bytes]
    decoder: Decoder | None = None
    """Replays recorded steps; None: every step takes the plain path."""
    counters: Counters = field(default_factory=Counters)
    next_step: int = 0
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    _arrivals: int = 0
    _ngrams: dict[SequenceKey, NgramIndex] = field(default_factory=dict)
    _runner: Runner = field(init=False)
    _flying: Flight | None = None  # launched, chosen from, not committed
    _untold: list[Output] = field(default_factory=list)  # in order; also what a step that then failed had committed

    def __post_init__(self) -> None:
        self._runner = Runner(self.model, self.decoder)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def queue_seconds(self, now: float) -> float:
        """How long the first in the queue has waited to run; 0: nobody does (who is preempted has run). Thread-safe."""
        return max(0.0, now - min((s.waits_since for s in list(self.waiting)), default=now))

    def expert_loads(self) -> Loads:
        """What every expert held here had to do; a step or more ago where a device computes. Thread-safe."""
        return self._runner.loads.ask(busy=self.has_work and self.model.target.device.type != "cpu")

    @property
    def backlog(self) -> int:
        """Tokens to compute before every sequence decodes: prompts, and what was lost elsewhere or preempted."""
        return sum(s.pending - 1 for s in self._all() if s.pending > 1)

    @property
    def kv_used(self) -> float:
        """Share of the blocks of full layers in use, 0 to 1. Thread-safe."""
        return 1.0 - self.kv.full.num_free / self.kv.full.num_blocks

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
        self.kv.keep_tails(sequence.tables, (*sequence.marks, sequence.prompt_length))
        self.waiting.append(sequence)

    def cancel(self, request_id: str, attempt: int | None = None, choice: int | None = None) -> None:
        """End a request's choices now: all, or those of one `attempt` or `choice`. Unknown names end nothing."""
        self._cancel(
            s
            for s in self._all()
            if s.key.request_id == request_id and attempt in (None, s.attempt) and choice in (None, s.key.choice)
        )

    def forget_stream(self, stream: str) -> None:
        """End every sequence whose listener is gone; whoever traces them hears of it."""
        self._cancel(s for s in self._all() if s.stream == stream)

    def expire(self, now: float) -> None:
        """End every sequence whose deadline (unix seconds) has passed."""
        self._cancel(s for s in self._all() if s.deadline and s.deadline <= now)

    def step(self, wishes: Wish = Wish.NONE) -> StepResult:
        """One step of the whole group: every rank calls it together.

        Raises ExchangeError when a rank fails; nothing of this step is committed then, and the engine needs a new
        exchange. With it every sequence goes on where it was: what was planned is planned again.
        """
        watch = self.model.stopwatch
        if wishes or not self._overlaps:
            self._land()
        with watch.phase("schedule"):
            plan = self._schedule()
        if plan is None:
            self._land()
            with watch.phase("schedule"):
                plan = self._schedule()
            assert plan is not None, "nothing is under way"
        with watch.phase("agreement"):
            agreed = self.exchange.agree(self.next_step, plan.num_tokens, wishes)
        idle = agreed.total_tokens == 0
        if Wish.PAUSE in agreed.wishes:
            return StepResult(self.next_step, self.tell(), idle, agreed.wishes)
        flight = None if idle else self._launch(plan)
        self.next_step += 1
        self.counters.steps += 1
        self._land()
        if flight is not None:
            self._runner.choose(flight)
            self._flying = flight
            if not (self._overlaps and flight.told_by_device):
                self._land()
        return StepResult(self.next_step - 1, self.tell(), idle, agreed.wishes)

    def tell(self) -> tuple[Output, ...]:
        """What became of sequences since the last time, in order; a step tells it by itself."""
        outputs, self._untold = tuple(self._untold), []
        return outputs

    def drop_all(self) -> list[Sequence]:
        """Forget every sequence and free its blocks: the exchange broke or the worker stops. Who has ended and was not
        told of is not among them: `tell` comes first."""
        assert not self._untold, f"{len(self._untold)} outputs would be lost"
        dropped = self._all()
        for sequence in self.running:
            self._free(sequence)
        self.waiting.clear()
        self.running.clear()
        self._ngrams.clear()
        self._flying = None
        return dropped

    def check_integrity(self) -> None:
        """Every block has its readers or rests; waiting sequences own none. Called when idle and after every test."""
        assert not any(s.tables.full or s.computed for s in self.waiting), "a waiting sequence owns blocks"
        for s in self._all():
            assert s.constraint is None or s.constraint.position == s.num_generated, f"{s.key} left its constraint"
        self.kv.check_integrity(s.tables for s in self.running)

    # -- schedule -----------------------------------------------------------------------------------------------

    @property
    def _overlaps(self) -> bool:
        """In a group every layer waits for the host, and guesses need the last token."""
        alone = self.exchange.size == 1 and not self.limits.speculative_tokens
        return self.limits.overlap and alone and self.model.target.sampler == "device"

    def _schedule(self) -> Plan | None:
        """Decide, then make it so: blocks change hands, nothing is computed yet.

        None, and nothing changed: some sequence must give its blocks, and a step under way must land before.
        """
        for sequence in self.running if self.limits.speculative_tokens else ():
            sequence.drafts = self._guess(sequence)
        hits: dict[int, Hit] = {}
        room = self.limits.batch.max_batch_size - len(self.running)
        candidates = self._candidates(room)
        for sequence in candidates:
            hits[id(sequence)] = self._find_prefix(sequence)
        waiting, running = (
            [self._demand(s, hits.get(id(s), NO_HIT)) for s in some] for some in (candidates, self.running)
        )
        plan = plan_step(waiting, running, self.kv.free, self.limits.batch)
        if plan.preempted:
            if self._flying is not None:
                return None
            running = [replace(d, gives=self.kv.exclusive(d.sequence.tables)) for d in running]  # dear: seldom wanted
            plan = plan_step(waiting, running, self.kv.free, self.limits.batch)
        for sequence in plan.preempted:
            self._free(sequence)
            self.running.remove(sequence)
            self.waiting.append(sequence)
            self.counters.preemptions += 1
        for sequence in plan.admitted:
            self._admit(sequence, hits[id(sequence)])
        copies: list[CopyBlock] = []
        for work in plan.work:
            copies += self.kv.extend(work.sequence.tables, work.sequence.started, work.tokens)
        self.model.kv.copy(copies)
        return plan

    def _candidates(self, room: int) -> list[Sequence]:
        """The waiting sequences that could begin now: as many as there is room for, in order, without those whose
        sibling computes the same prompt right now."""
        computing = {s.key.request_id for s in self.running if s.computed < s.prompt_length}
        candidates: list[Sequence] = []
        for sequence in sorted(self.waiting, key=lambda s: (-s.priority, s.arrival)):
            if len(candidates) >= room:
                break
            if sequence.key.request_id not in computing:
                candidates.append(sequence)
                computing.add(sequence.key.request_id)
        return candidates

    def _find_prefix(self, sequence: Sequence) -> Hit:
        """What need not be computed: a sibling's whole prompt (all but its last token, whose logits are wanted), or
        the longest prefix in the cache."""
        if sequence.wants_prompt:
            return NO_HIT  # every prompt token's logits are wanted
        for other in self.running:
            if (
                other.key.request_id == sequence.key.request_id
                and other.computed >= sequence.prompt_length
                and other.tokens[: sequence.prompt_length] == sequence.tokens
                and other.salt == sequence.salt
            ):
                shared = self.kv.share(other.tables, sequence.prompt_length - 1)
                if shared.length:
                    return shared
        return self.kv.lookup(sequence.tables, sequence.tokens, sequence.salt)

    def _admit(self, sequence: Sequence, hit: Hit) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self.kv.take(sequence.tables, hit)
        sequence.computed = hit.length
        sequence.waits_since = math.inf
        if sequence.cached is None:
            sequence.cached = min(hit.length, sequence.prompt_length)
            self.counters.cached_tokens += sequence.cached

    def _demand(self, sequence: Sequence, hit: Hit) -> Demand:
        tables = sequence.tables
        if hit.length % self.limits.batch.block_size:
            copies = Blocks(1, 1)  # the sibling's last block
        else:
            copies = self.kv.copies_needed(tables, sequence.started)
        return Demand(
            sequence=sequence,
            computed=sequence.started + hit.length,
            table=tables.length + len(hit.full),
            copies=copies,
            pinned=hit.pinned,
        )

    def _guess(self, sequence: Sequence) -> list[int]:
        """Drafts for a decoding sequence, never past its end."""
        left = sequence.stop.max_tokens - sequence.num_generated - 1
        count = min(self.limits.speculative_tokens, left, self.limits.max_context - len(sequence.tokens) - 1)
        if count <= 0 or sequence.pending != 1:
            return []
        drafts = self._ngrams.setdefault(sequence.key, NgramIndex()).guess(sequence.tokens, count)
        if drafts and sequence.constraint is not None:
            return drafts[: sequence.constraint.accepted(drafts)]
        return drafts

    # -- commit -------------------------------------------------------------------------------------------------

    def _launch(self, plan: Plan) -> Flight:
        """Begin the step; from now on its sequences have tokens under way. Raises ExchangeError."""
        flight = self._runner.launch(plan.work, self._flying)
        for part in flight.parts:
            part.take_off(self.limits.max_context)
        return flight

    def _land(self) -> None:
        """Wait for the step under way, if there is one, and commit it."""
        flight, self._flying = self._flying, None
        if flight is None:
            return
        results = self._runner.collect(flight)
        with self.model.stopwatch.phase("commit"):
            for part in flight.parts:
                part.land()
            self._commit(results)

    def _commit(self, results: Iterable[Result]) -> None:
        for result in results:
            sequence, sampled = result.work.sequence, result.sampled
            drafted = max(0, result.work.tokens - (len(sequence.tokens) - sequence.computed))
            accepted = max(0, len(sampled) - 1)
            self.counters.drafted_tokens += drafted
            self.counters.accepted_tokens += accepted
            before = sequence.computed
            sequence.computed += result.work.tokens - drafted + accepted
            self.counters.prompt_tokens += max(0, min(sequence.computed, sequence.prompt_length) - before)
            sequence.prompt_told = max(sequence.prompt_told, min(sequence.computed + 1, sequence.prompt_length))
            new = self._append(sequence, result)
            self._untold += new
            if not (new and new[-1].finish):
                self.kv.commit(sequence.tables, sequence.tokens, sequence.computed, sequence.salt)

    def _append(self, sequence: Sequence, result: Result) -> list[Output]:
        """Give the sequence its new tokens, up to its end."""
        outputs = []
        for i, token in enumerate(result.sampled):
            offset = sequence.num_generated
            sequence.tokens.append(token.id)
            self.counters.generated_tokens += 1
            finish, looping = finish_after(sequence, self.limits.max_context, self.token_bytes)
            outputs.append(Output(sequence, offset, token, finish, result.prompt if i == 0 else (), looping))
            if finish is not None:
                # Its blocks stay findable: the next turn of a conversation begins with these tokens.
                written = min(sequence.computed, len(sequence.tokens) - 1)
                self.kv.commit(sequence.tables, sequence.tokens, written, sequence.salt)
                self._end(sequence, finish)
                return outputs
        if result.dead_end:
            ended = self._end(sequence, Finish.DEAD_END)
            return [*outputs, replace(ended, prompt=result.prompt if not outputs else (), why=result.dead_end)]
        if result.prompt and not outputs:
            outputs.append(Output(sequence, sequence.num_generated, None, None, result.prompt))
        return outputs

    def _cancel(self, sequences: Iterable[Sequence]) -> None:
        self._untold += [self._end(sequence, Finish.CANCELLED) for sequence in sequences]

    def _end(self, sequence: Sequence, finish: Finish) -> Output:
        sequence.finish = finish
        self._ngrams.pop(sequence.key, None)
        if sequence in self.running:
            self._free(sequence)
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        return Output(sequence, sequence.num_generated, None, finish)

    def _free(self, sequence: Sequence) -> None:
        self.kv.release(sequence.tables)
        sequence.computed = 0
        sequence.drafts = []

    def _all(self) -> list[Sequence]:
        return [*self.waiting, *self.running]

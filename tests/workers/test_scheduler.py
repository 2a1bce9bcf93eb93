"""The schedule: budgets kept, blocks never owned twice, nobody starved."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.workers.engine.scheduler import Demand, Limits, Plan, Work, plan_step
from shoal.workers.engine.sequence import Sequence, SequenceKey
from shoal.workers.kv.manager import Blocks, KvManager
from tests.workers.engines import sequence

LIMITS = Limits(max_batch_size=4, max_batch_tokens=16, block_size=4)
PLENTY = Blocks(100, 100)


def decoding(length: int, arrival: int, computed: int | None = None) -> Demand:
    """A running sequence that lacks its newest token only."""
    s = sequence([1] * length, name=str(arrival))
    s.arrival = arrival
    table = -(-(length - 1) // LIMITS.block_size)
    return Demand(s, length - 1 if computed is None else computed, table, gives=Blocks(table, table))


def waiting(length: int, arrival: int, priority: int = 0, computed: int = 0, pinned: Blocks = Blocks(0, 0)) -> Demand:  # noqa: B008  # a constant
    s = sequence([1] * length, name=str(arrival), priority=priority)
    s.arrival = arrival
    return Demand(s, computed, computed // LIMITS.block_size, pinned=pinned)


def tokens_by_name(plan: Plan) -> dict[str, int]:
    return {work.sequence.key.request_id: work.tokens for work in plan.work}


def test_decodes_come_before_prompts() -> None:
    """A long prompt gets what the decodes leave of the budget."""
    plan = plan_step([waiting(40, 9)], [decoding(5, 1), decoding(9, 2)], PLENTY, LIMITS)
    assert tokens_by_name(plan) == {"1": 1, "2": 1, "9": 14}


def test_drafts_take_what_is_left() -> None:
    """Guesses are verified with the budget that nobody else needs."""
    guessing = decoding(5, 1)
    guessing.sequence.drafts = [1] * 9
    assert tokens_by_name(plan_step([waiting(10, 9)], [guessing], PLENTY, LIMITS)) == {"1": 1 + 5, "9": 10}
    assert tokens_by_name(plan_step([], [guessing], PLENTY, LIMITS)) == {"1": 1 + 9}
    assert tokens_by_name(plan_step([], [guessing], Blocks(1, 1), LIMITS)) == {"1": 1 + 3}


def test_higher_priority_is_admitted_first() -> None:
    """Among the waiting the more important go first, then the older."""
    plan = plan_step([waiting(16, 1), waiting(16, 2, priority=5)], [], PLENTY, LIMITS)
    assert [s.key.request_id for s in plan.admitted] == ["2"]


def test_a_found_prefix_costs_only_what_it_pins() -> None:
    """Blocks found in the cache need not be allocated, but those that were evictable are gone for others."""
    demand = waiting(40, 1, computed=36, pinned=Blocks(9, 3))
    assert plan_step([demand], [], Blocks(10, 4), LIMITS).admitted
    assert not plan_step([demand], [], Blocks(9, 4), LIMITS).admitted
    assert not plan_step([demand], [], Blocks(10, 3), LIMITS).admitted


def test_a_large_request_is_not_overtaken() -> None:
    """When the next in line does not fit, smaller ones behind it wait too."""
    plan = plan_step([waiting(40, 1), waiting(4, 2)], [decoding(5, 0)], Blocks(5, 50), LIMITS)
    assert plan.admitted == ()


def test_the_youngest_is_preempted_when_blocks_run_out() -> None:
    """The oldest sequence gets the block that the youngest had."""
    old, young = decoding(5, 1), decoding(5, 2)
    plan = plan_step([], [old, young], Blocks(0, 0), LIMITS)
    assert plan.preempted == (young.sequence,)
    assert tokens_by_name(plan) == {"1": 1}


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8),
    st.sets(st.integers(1, 40), max_size=5),
)
def test_drafts_fill_a_step_to_its_preferred_size_and_no_further(
    running: list[tuple[int, int]], sizes: set[int]
) -> None:
    """The size is the least that holds what must be computed; drafts add as many as fit in it, and no more changes."""
    limits = Limits(8, 32, 4, tuple(sorted(sizes)))
    demands = [decoding(4 + pending, i, computed=4) for i, (pending, _) in enumerate(running)]
    plain = plan_step([], demands, PLENTY, limits)
    for demand, (pending, drafts) in zip(demands, running, strict=True):
        demand.sequence.drafts = [0] * drafts if pending == 1 else []
    plan = plan_step([], demands, PLENTY, limits)
    must = plain.num_tokens
    fitting = [size for size in sorted(sizes) if must <= size <= 32]
    assert (fitting[0] if fitting else 0) == plan.size == plain.size
    offered = sum(len(d.sequence.drafts) for d in demands)
    assert min(must + offered, plan.size or 32) == plan.num_tokens
    assert {w.sequence.key for w in plan.work} == {w.sequence.key for w in plain.work}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    ),
    st.integers(20, 40),
    st.integers(16, 40),
)
def test_everything_finishes_within_bounds(
    requests: list[tuple[int, int, int, int]], num_full: int, num_sliding: int
) -> None:
    """Whatever comes, with common prefixes and drafts, every sequence finishes; the budget holds in every step and no
    block is written by one sequence while another reads it."""
    engine = FakeEngine(num_full, num_sliding)
    for i, (length, extra, priority, kind) in enumerate(requests):
        engine.add([kind] * length, extra, priority, i)
    for _ in range(5000):
        if not engine.line and not engine.running:
            break
        engine.step()
    assert not engine.line
    assert not engine.running
    engine.kv.check_integrity([])


class FakeEngine:
    """The bookkeeping of an engine without a model."""

    def __init__(self, num_full: int, num_sliding: int) -> None:
        self.kv = KvManager(num_full, num_sliding, LIMITS.block_size, window=10)
        self.line: list[Sequence] = []
        self.running: list[Sequence] = []
        self.goal: dict[SequenceKey, int] = {}

    def add(self, tokens: list[int], extra: int, priority: int, arrival: int) -> None:
        s = sequence(tokens, name=str(arrival), priority=priority)
        s.arrival = arrival
        self.goal[s.key] = min(len(tokens) + extra, self.kv.full.num_blocks * LIMITS.block_size)
        self.line.append(s)

    def step(self) -> None:
        hits = {s.key: self.kv.lookup(s.tables, s.tokens, b"") for s in self.line}
        for s in self.running:
            s.drafts = [0, 0] if s.pending == 1 else []
        plan = plan_step(
            [Demand(s, hits[s.key].length, len(hits[s.key].full), pinned=hits[s.key].pinned) for s in self.line],
            [
                Demand(s, s.computed, s.tables.length, self.kv.exclusive(s.tables),
                       self.kv.copies_needed(s.tables, s.computed))
                for s in self.running
            ],
            self.kv.free,
            LIMITS,
        )  # fmt: skip
        assert plan.num_tokens <= LIMITS.max_batch_tokens
        assert plan.work, "work left and nothing planned"
        for s in plan.preempted:
            self.kv.release(s.tables)
            s.computed = 0
            self.running.remove(s)
            self.line.append(s)
        for s in plan.admitted:
            self.kv.take(s.tables, hits[s.key])
            s.computed = hits[s.key].length
            self.line.remove(s)
            self.running.append(s)
        assert len(self.running) <= LIMITS.max_batch_size
        for work in plan.work:
            self.kv.extend(work.sequence.tables, work.sequence.computed, work.tokens)
            self.assert_exclusive(work)
        for work in plan.work:
            self.commit(work)
        self.kv.check_integrity(s.tables for s in self.running)

    def assert_exclusive(self, work: Work) -> None:
        """Blocks about to be written have one reader."""
        t, start = work.sequence.tables, work.sequence.computed
        for entry in range(start // LIMITS.block_size, -(-(start + work.tokens) // LIMITS.block_size)):
            assert self.kv.full.refs(t.full[entry]) == 1
            assert self.kv.sliding.refs(t.sliding[entry]) == 1

    def commit(self, work: Work) -> None:
        s = work.sequence
        done = min(s.pending, work.tokens)
        s.computed += done
        if not s.pending:
            s.tokens.append(len(s.tokens) % 3)
        self.kv.commit(s.tables, s.tokens, s.computed, b"")
        if len(s.tokens) >= self.goal[s.key] and not s.pending > 1:
            self.kv.release(s.tables)
            self.running.remove(s)

"""The schedule: budgets kept, blocks never owned twice, nobody starved."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.workers.engine.blocks import BlockPool
from shoal.workers.engine.scheduler import Limits, Plan, plan_step
from shoal.workers.engine.sequence import Sequence
from tests.workers.engines import sequence

LIMITS = Limits(max_batch_size=4, max_batch_tokens=16, block_size=4)


def decoding(length: int, arrival: int, priority: int = 0) -> Sequence:
    """A running sequence that lacks its newest token only."""
    s = sequence([1] * length, name=str(arrival), priority=priority)
    s.arrival, s.computed = arrival, length - 1
    s.blocks = list(range(1000 * arrival, 1000 * arrival + -(-(length - 1) // LIMITS.block_size)))
    return s


def waiting(length: int, arrival: int, priority: int = 0) -> Sequence:
    s = sequence([1] * length, name=str(arrival), priority=priority)
    s.arrival = arrival
    return s


def tokens_by_name(plan: Plan) -> dict[str, int]:
    return {work.sequence.key.request_id: work.tokens for work in plan.work}


def test_decodes_come_before_prompts() -> None:
    """A long prompt gets what the decodes leave of the budget."""
    plan = plan_step([waiting(40, 9)], [decoding(5, 1), decoding(9, 2)], 100, LIMITS)
    assert tokens_by_name(plan) == {"1": 1, "2": 1, "9": 14}


def test_higher_priority_is_admitted_first() -> None:
    """Among the waiting the more important go first, then the older."""
    plan = plan_step([waiting(16, 1), waiting(16, 2, priority=5)], [], 100, LIMITS)
    assert [s.key.request_id for s in plan.admitted] == ["2"]


def test_a_large_request_is_not_overtaken() -> None:
    """When the next in line does not fit, smaller ones behind it wait too."""
    plan = plan_step([waiting(40, 1), waiting(4, 2)], [decoding(5, 0)], 5, LIMITS)
    assert plan.admitted == ()


def test_the_youngest_is_preempted_when_blocks_run_out() -> None:
    """The oldest sequence gets the block that the youngest had."""
    old, young = decoding(5, 1), decoding(5, 2)
    old.computed = young.computed = 4
    plan = plan_step([], [old, young], 0, LIMITS)
    assert (young,) == plan.preempted
    assert tokens_by_name(plan) == {"1": 1}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2)), min_size=1, max_size=12),
    st.integers(20, 40),
)
def test_everything_finishes_within_bounds(requests: list[tuple[int, int, int]], num_blocks: int) -> None:
    """Whatever comes, every sequence finishes, budgets hold in every step and blocks are never shared."""
    pool = BlockPool(num_blocks)
    line = [waiting(length, i, priority) for i, (length, _, priority) in enumerate(requests)]
    goal = {s.key: len(s.tokens) + extra for s, (_, extra, _) in zip(line, requests, strict=True)}
    goal = {key: min(total, num_blocks * LIMITS.block_size) for key, total in goal.items()}
    running: list[Sequence] = []
    for _ in range(5000):
        if not line and not running:
            break
        plan = plan_step(line, running, pool.num_free, LIMITS)
        assert plan.num_tokens <= LIMITS.max_batch_tokens
        assert plan.work, "work left and nothing planned"
        for s in plan.preempted:
            pool.release(s.blocks)
            s.blocks, s.computed = [], 0
            running.remove(s)
            line.append(s)
        for s in plan.admitted:
            line.remove(s)
            running.append(s)
        assert len(running) <= LIMITS.max_batch_size
        for work in plan.work:
            work.sequence.blocks += pool.allocate(work.new_blocks)
            work.sequence.computed += work.tokens
        pool.check_integrity(b for s in running for b in s.blocks)
        for s in list(running):
            assert len(s.blocks) * LIMITS.block_size >= s.computed
            if not s.pending:
                s.tokens.append(1)
                if len(s.tokens) >= goal[s.key]:
                    pool.release(s.blocks)
                    running.remove(s)
    assert not line
    assert not running

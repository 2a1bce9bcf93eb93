"""The block pools and the prefix cache: nothing owned twice, nothing found that is not there."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.cluster.checkpoint.presets import PRESETS
from shoal.workers.errors import ConfigError
from shoal.workers.kv.manager import KvManager
from shoal.workers.kv.memory import plan_kv
from shoal.workers.kv.pool import BlockPool, Change
from shoal.workers.kv.tables import DROPPED, Tables

BLOCK, WINDOW = 4, 10


def written(kv: KvManager, tokens: list[int], salt: bytes = b"") -> Tables:
    """A sequence whose tokens are all computed, four at a time."""
    tables = Tables()
    for start in range(0, len(tokens), BLOCK):
        end = min(start + BLOCK, len(tokens))
        kv.extend(tables, start, end - start)
        kv.commit(tables, tokens, end, salt)
    return tables


def test_sealed_blocks_are_found_until_evicted() -> None:
    """A released block keeps its contents until room is needed; the events say so."""
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.seal(block, b"x")
    pool.release(block)
    assert block == pool.find(b"x")
    pool.allocate(2)
    assert pool.find(b"x") is None
    assert [Change.STORED, Change.REMOVED] == [event.change for event in pool.events]


def test_long_kept_blocks_are_evicted_last() -> None:
    """A tail marked as worth keeping outlives blocks released after it."""
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.seal(first, b"tail")
    pool.seal(second, b"other")
    pool.release(first, keep_long=True)
    pool.release(second)
    pool.allocate(1)
    assert pool.find(b"tail") is not None
    assert pool.find(b"other") is None


def test_sliding_blocks_leave_with_the_window() -> None:
    """Only the blocks that the next token's window reaches stay owned; the others rest in the cache."""
    kv = KvManager(20, 20, BLOCK, WINDOW)
    tables = written(kv, list(range(40)))
    assert [DROPPED] * 7 == list(tables.sliding[:7])
    assert DROPPED not in tables.sliding[7:]
    assert 10 == len(tables.full)
    kv.check_integrity([tables])


def test_a_hit_needs_the_window_tail() -> None:
    """With the sliding tail evicted a shorter prefix is found, or none; never one with a hole."""
    kv = KvManager(20, 20, BLOCK, WINDOW)
    tokens = list(range(40))
    kv.release(written(kv, tokens))
    assert 36 == kv.lookup(Tables(), tokens, b"").length
    assert 40 == kv.lookup(Tables(), [*tokens, 7], b"").length
    kv.sliding.forget_all()
    assert 0 == kv.lookup(Tables(), tokens, b"").length
    kv.check_integrity([])


def test_the_end_of_a_prompt_outlives_what_was_generated() -> None:
    """After a long answer the next request with the same prompt still hits, though the window moved on."""
    kv = KvManager(100, 16, BLOCK, WINDOW)
    prompt = list(range(20))
    tables = Tables()
    kv.keep_tails(tables, [20])
    for start in range(0, 200, BLOCK):
        kv.extend(tables, start, BLOCK)
        kv.commit(tables, prompt + [9] * 180, start + BLOCK, b"")
    assert 20 == kv.lookup(Tables(), [*prompt, 1, 2, 3], b"").length


def test_tenants_never_share_a_block() -> None:
    """Another salt finds nothing."""
    kv = KvManager(20, 20, BLOCK, WINDOW)
    kv.release(written(kv, list(range(16)), salt=b"one"))
    assert 12 == kv.lookup(Tables(), list(range(16)), b"one").length
    assert 0 == kv.lookup(Tables(), list(range(16)), b"two").length


def test_a_shared_block_is_copied_before_it_is_written() -> None:
    """A fork gets its own copy of the block that it writes first, in both pools."""
    kv = KvManager(20, 20, BLOCK, WINDOW)
    tables = written(kv, list(range(10)))
    fork = Tables()
    kv.take(fork, kv.share(tables, 9))
    copies = kv.extend(fork, 9, 1)
    assert {(c.sliding, c.source) for c in copies} == {(False, tables.full[2]), (True, tables.sliding[2])}
    assert fork.full[:2] == tables.full[:2]
    assert fork.full[2] != tables.full[2]
    assert not kv.extend(tables, 10, 1)
    kv.check_integrity([tables, fork])


def test_a_fork_does_not_write_into_what_its_sibling_left_in_the_cache() -> None:
    """The shared last block was completed by the sibling, which ended: alone with it, the fork still copies."""
    kv = KvManager(20, 20, 4, 8)
    tables = written(kv, list(range(8)))
    fork = Tables()
    kv.take(fork, kv.share(tables, 7))
    left = tables.full[1]
    kv.release(tables)
    copies = kv.extend(fork, 7, 1)
    assert {(c.sliding, c.source) for c in copies} == {(False, left), (True, left)}
    assert fork.full[1] != left
    assert kv.lookup(Tables(), list(range(9)), b"").full[1] == left
    kv.check_integrity([fork])


class Cache(RuleBasedStateMachine):
    """Sequences come, grow, fork and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = KvManager(24, 14, BLOCK, WINDOW)
        self.alive: list[tuple[Tables, list[int]]] = []
        self.content: dict[int, list[int]] = {}  # full block -> tokens up to its end, as last written

    def grow(self, tables: Tables, tokens: list[int], computed: int) -> None:
        while computed < len(tokens):
            step = min(BLOCK, len(tokens) - computed)
            if min(self.kv.free) < 3:
                del tokens[computed:]
                return
            for copy in self.kv.extend(tables, computed, step):
                if not copy.sliding:
                    self.content[copy.target] = list(self.content[copy.source])
            computed += step
            for entry in range((computed - step) // BLOCK, -(-computed // BLOCK)):
                self.content[tables.full[entry]] = tokens[: min(computed, (entry + 1) * BLOCK)]
            self.kv.commit(tables, tokens, computed, b"")

    @precondition(lambda self: len(self.alive) < 3)
    @rule(kind=st.integers(0, 1), length=st.integers(1, 30))
    def begin(self, kind: int, length: int) -> None:
        tables, tokens = Tables(), [kind] * length
        hit = self.kv.lookup(tables, tokens, b"")
        assert hit.length < length
        for entry, block in enumerate(hit.full):
            assert self.content[block] == tokens[: (entry + 1) * BLOCK], "a found block holds other tokens"
        self.kv.take(tables, hit)
        self.alive.append((tables, tokens))
        self.grow(tables, tokens, hit.length)

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 2), more=st.integers(1, 6))
    def extend(self, which: int, more: int) -> None:
        tables, tokens = self.alive[which % len(self.alive)]
        computed = len(tokens)
        tokens += [2] * more
        self.grow(tables, tokens, computed)

    @precondition(lambda self: 0 < len(self.alive) < 3)
    @rule(which=st.integers(0, 2))
    def fork(self, which: int) -> None:
        source, tokens = self.alive[which % len(self.alive)]
        hit = self.kv.share(source, len(tokens) - 1) if tokens else self.kv.lookup(Tables(), [0], b"")
        if hit.length:
            tables = Tables()
            self.kv.take(tables, hit)
            self.alive.append((tables, tokens[: hit.length]))

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 2))
    def end(self, which: int) -> None:
        tables, _ = self.alive.pop(which % len(self.alive))
        self.kv.release(tables)

    @invariant()
    def sound(self) -> None:
        self.kv.check_integrity(tables for tables, _ in self.alive)


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_memory_of_the_published_model_is_as_computed() -> None:
    """120b: 2,048 bytes per token and layer in bf16, so 36,864 per token in the full layers."""
    plan = plan_kv(PRESETS["120b"].config(), block_size=16, batch_size=64, batch_tokens=2048, itemsize=2, tokens=131072)
    assert 131072 * 36864 == plan.bytes_full
    assert 2 * 64 * (128 // 16 + 2) + 128 == plan.num_sliding
    same = plan_kv(
        PRESETS["120b"].config(), block_size=16, batch_size=64, batch_tokens=2048, itemsize=2, memory=plan.bytes_total
    )
    assert plan == same


def test_too_little_memory_is_an_error_that_names_the_key() -> None:
    """Nothing is allocated that could not hold one sequence."""
    with pytest.raises(ConfigError, match=r"worker\.kv_memory"):
        plan_kv(PRESETS["120b"].config(), block_size=16, batch_size=4, batch_tokens=64, itemsize=2, memory=1 << 20)

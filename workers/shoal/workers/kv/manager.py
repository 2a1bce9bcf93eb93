"""The KV blocks of one rank: two pools, the prefix cache over both, and the sequences' tables.

Full-attention layers keep every block of a sequence. Sliding layers keep those that the window can still reach: on
commit, blocks that left it are released into the cache; they are never overwritten in place.

A prefix of L tokens (a multiple of the block size) is found when the full pool has *all* its blocks and the sliding
pool has those that the first new token's window reaches: only then is nothing recomputed and nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from shoal.workers.kv.pool import BlockPool
from shoal.workers.kv.prefix import extend_hashes
from shoal.workers.kv.tables import DROPPED, Tables, entries, no_entries


class Blocks(NamedTuple):
    """A number of blocks in each pool."""

    full: int
    sliding: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A found prefix: `length` tokens need not be computed. `pinned` blocks are evictable until it is taken. When
    `length` ends inside a block, that block is another sequence's and is copied before it is written."""

    length: int
    full: tuple[int, ...]
    sliding: tuple[int, ...]
    pinned: Blocks


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """Before the step: copy one block's contents in the layers of one pool."""

    sliding: bool
    source: int
    target: int


NO_HIT = Hit(0, (), (), Blocks(0, 0))


class KvManager:
    """Hands blocks to sequences. Not thread-safe."""

    def __init__(self, num_full: int, num_sliding: int, block_size: int, window: int, *, caching: bool = True) -> None:
        """`window` is the largest of the sliding layers, the token itself included."""
        self.block_size = block_size
        self.window = window
        self.caching = caching
        self.full = BlockPool(num_full)
        self.sliding = BlockPool(num_sliding)

    @property
    def free(self) -> Blocks:
        """Blocks to be had in each pool."""
        return Blocks(self.full.num_free, self.sliding.num_free)

    def first_visible(self, position: int) -> int:
        """Table entry of the oldest block that the window of a token at `position` reaches."""
        return max(0, position - self.window + 1) // self.block_size

    def lookup(self, tables: Tables, tokens: list[int], salt: bytes) -> Hit:
        """The longest cached prefix that leaves at least one token to compute. Changes nothing but `tables.hashes`."""
        if not self.caching:
            return NO_HIT
        extend_hashes(tables.hashes, tokens, self.block_size, salt)
        full: list[int] = []
        sliding: list[int | None] = []
        best, run = 0, 0  # run: sliding blocks found in a row
        for i, content in enumerate(tables.hashes[: (len(tokens) - 1) // self.block_size]):
            block = self.full.find(content)
            if block is None:
                break
            full.append(block)
            sliding.append(self.sliding.find(content))
            run = run + 1 if sliding[i] is not None else 0
            if run >= i + 1 - self.first_visible((i + 1) * self.block_size):
                best = i + 1
        tail = self.first_visible(best * self.block_size)
        found = tuple(block if i >= tail and block is not None else DROPPED for i, block in enumerate(sliding[:best]))
        pinned = Blocks(
            sum(not self.full.refs(b) for b in full[:best]),
            sum(not self.sliding.refs(b) for b in found if b != DROPPED),
        )
        return Hit(best * self.block_size, tuple(full[:best]), found, pinned)

    def take(self, tables: Tables, hit: Hit) -> None:
        """Make a found prefix the beginning of an empty table. All hits of a step are taken before it allocates."""
        assert not tables.full, "the table is not empty"
        for block in hit.full:
            self.full.acquire(block)
        for block in hit.sliding:
            if block != DROPPED:
                self.sliding.acquire(block)
        tables.full, tables.sliding = entries(hit.full), entries(hit.sliding)
        tables.dropped = sum(block == DROPPED for block in hit.sliding)
        tables.sealed = hit.length // self.block_size

    def share(self, source: Tables, length: int) -> Hit:
        """The first `length` tokens of another sequence, to be shared until either writes; NO_HIT when the window
        has left them already. Changes nothing."""
        blocks = -(-length // self.block_size)
        if source.dropped > self.first_visible(length):
            return NO_HIT
        return Hit(length, tuple(source.full[:blocks]), tuple(source.sliding[:blocks]), Blocks(0, 0))

    def copies_needed(self, tables: Tables, computed: int) -> Blocks:
        """Blocks that the next token would write although others read them, or may find them in the cache (a fork's
        last block, completed and left by its sibling): each is copied first."""
        entry = computed // self.block_size
        if entry >= tables.length:
            return Blocks(0, 0)
        return Blocks(not self.full.writable(tables.full[entry]), not self.sliding.writable(tables.sliding[entry]))

    def extend(self, tables: Tables, computed: int, tokens: int) -> list[CopyBlock]:
        """Make room for the next `tokens` tokens. The caller counted: enough blocks are free. Shared blocks that
        would be written are replaced by copies, to be made before the step."""
        copies = []
        need = self.copies_needed(tables, computed)
        entry = computed // self.block_size
        for pool, table, shared in ((self.full, tables.full, need.full), (self.sliding, tables.sliding, need.sliding)):
            if shared:
                (own,) = pool.allocate(1)
                copies.append(CopyBlock(pool is self.sliding, table[entry], own))
                pool.release(table[entry])
                table[entry] = own
        missing = max(0, -(-(computed + tokens) // self.block_size) - tables.length)
        if missing:
            tables.full.extend(self.full.allocate(missing))
            tables.sliding.extend(self.sliding.allocate(missing))
        return copies

    def keep_tails(self, tables: Tables, marks: Iterable[int]) -> None:
        """A later request may continue from any of `marks` (token counts): the sliding blocks that it would need
        are evicted last."""
        ends = [mark // self.block_size for mark in marks]
        tables.keep = frozenset(i for end in ends for i in range(self.first_visible(end * self.block_size), end))

    def commit(self, tables: Tables, tokens: list[int], computed: int, salt: bytes) -> None:
        """The first `computed` tokens are written: offer complete blocks to the cache, release what left the window."""
        complete = computed // self.block_size
        if self.caching and complete > tables.sealed:
            extend_hashes(tables.hashes, tokens[: complete * self.block_size], self.block_size, salt)
            for i in range(tables.sealed, complete):
                self.full.seal(tables.full[i], tables.hashes[i])
                self.sliding.seal(tables.sliding[i], tables.hashes[i])
            tables.sealed = complete
        first = self.first_visible(computed)
        for i in range(tables.dropped, min(first, tables.length)):
            self.sliding.release(tables.sliding[i], keep_long=i in tables.keep)
            tables.sliding[i] = DROPPED
        tables.dropped = max(tables.dropped, min(first, tables.length))

    def release(self, tables: Tables) -> None:
        """Give everything back, the end first, so that beginnings are evicted last. The window's tail is kept long:
        a next turn continues there."""
        for block in reversed(tables.full):
            self.full.release(block)
        for block in reversed(tables.sliding[tables.dropped :]):
            self.sliding.release(block, keep_long=True)
        tables.full, tables.sliding, tables.dropped, tables.sealed = no_entries(), no_entries(), 0, 0

    def exclusive(self, tables: Tables) -> Blocks:
        """Blocks that releasing this table alone would make available."""
        return Blocks(
            sum(self.full.refs(b) == 1 for b in tables.full),
            sum(self.sliding.refs(b) == 1 for b in tables.sliding[tables.dropped :]),
        )

    def check_integrity(self, tables: Iterable[Tables]) -> None:
        """Every block is owned by exactly those who read it, or rests. Called when idle and after every test."""
        every = list(tables)
        for t in every:
            assert len(t.full) == len(t.sliding), f"tables of {len(t.full)} and {len(t.sliding)} entries"
            assert all((b == DROPPED) == (i < t.dropped) for i, b in enumerate(t.sliding)), "dropped entries disagree"
        self.full.check_integrity(b for t in every for b in t.full)
        self.sliding.check_integrity(b for t in every for b in t.sliding[t.dropped :])

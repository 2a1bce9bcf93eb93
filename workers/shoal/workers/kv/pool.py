"""A fixed set of blocks with reference counts; released blocks keep their contents until they are needed.

A block is in one of three states:

    owned       reference count above 0: one or more sequences read it
    evictable   nobody reads it, but it is sealed: its contents are known under a hash and may be found again
    free        nobody reads it and nothing is known of it
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass


class Change(enum.Enum):
    """What became of a sealed block."""

    STORED = enum.auto()
    REMOVED = enum.auto()


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """The contents under `hash` can be found from now on, or no longer."""

    change: Change
    hash: bytes


class BlockPool:
    """Blocks 0 .. num_blocks-1. Not thread-safe; every method leaves it consistent."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.events: deque[PoolEvent] = deque(maxlen=65536)  # whoever reports them empties it
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        # Evicted oldest first; the second kind only when the first is empty.
        self._evictable: tuple[OrderedDict[int, None], OrderedDict[int, None]] = (OrderedDict(), OrderedDict())

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: free and evictable ones."""
        return len(self._free) + len(self._evictable[0]) + len(self._evictable[1])

    def refs(self, block: int) -> int:
        """How many sequences read `block`."""
        return self._refs[block]

    def writable(self, block: int) -> bool:
        """Whether its only reader may write to an owned block: nobody else reads it, and nobody could find it."""
        return self._refs[block] == 1 and self._hash_of[block] is None

    def find(self, content: bytes) -> int | None:
        """The block whose contents have this hash. Changes nothing; `acquire` it before the next `allocate`."""
        return self._block_of.get(content)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each, evicting the longest unused; the caller checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} to be had"
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def acquire(self, block: int) -> None:
        """One more reader."""
        if self._refs[block] == 0:
            assert self._hash_of[block] is not None, f"block {block} is free, nothing can be read from it"
            for kind in self._evictable:
                kind.pop(block, None)
        self._refs[block] += 1

    def release(self, block: int, *, keep_long: bool = False) -> None:
        """One reader less. The last one leaves a sealed block evictable; `keep_long` ones are evicted last."""
        assert self._refs[block] > 0, f"block {block} is released but not owned"
        self._refs[block] -= 1
        if self._refs[block] == 0:
            if self._hash_of[block] is None:
                self._free.append(block)
            else:
                self._evictable[keep_long][block] = None

    def seal(self, block: int, content: bytes) -> None:
        """The contents of an owned block are complete and have this hash. Where another block holds the same, that
        one stays the one that is found."""
        assert self._refs[block] > 0, f"block {block} is sealed but not owned"
        if self._hash_of[block] is None and content not in self._block_of:
            self._hash_of[block] = content
            self._block_of[content] = block
            self.events.append(PoolEvent(Change.STORED, content))

    def forget_all(self) -> None:
        """Drop everything that nobody reads from the cache."""
        for kind in self._evictable:
            while kind:
                self._unseal(kind.popitem()[0])

    def check_integrity(self, owned: Iterable[int]) -> None:
        """`owned` names every reader's blocks, with repetition. Called when idle and after every test."""
        readers = Counter(owned)
        for block in range(self.num_blocks):
            assert readers[block] == self._refs[block], (
                f"block {block}: {readers[block]} readers, count {self._refs[block]}"
            )
        resting = [*self._free, *self._evictable[0], *self._evictable[1]]
        assert len(resting) == len(set(resting)), "a block rests twice"
        assert len(resting) + len(readers) == self.num_blocks, f"{len(resting)} + {len(readers)} != {self.num_blocks}"
        sealed = {h: b for b, h in enumerate(self._hash_of) if h is not None}
        assert sealed == self._block_of, "hashes and blocks disagree"
        assert all(self._hash_of[b] is None for b in self._free), "a free block is still found by its hash"

    def _evict(self) -> int:
        first, second = self._evictable
        block, _ = (first or second).popitem(last=False)
        self._unseal(block)
        return self._free.pop()

    def _unseal(self, block: int) -> None:
        content = self._hash_of[block]
        assert content is not None, f"block {block} was not sealed"
        del self._block_of[content]
        self._hash_of[block] = None
        self._free.append(block)
        self.events.append(PoolEvent(Change.REMOVED, content))

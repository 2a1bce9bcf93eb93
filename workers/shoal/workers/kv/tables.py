"""The block tables of one sequence."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

DROPPED = -1
"""Entry of a sliding table whose block has left the window."""


def entries(blocks: Iterable[int]) -> array[int]:
    """These blocks, as they lie in memory: a long context has thousands, and every step copies them."""
    return array("i", blocks)


def no_entries() -> array[int]:
    """None yet."""
    return array("i")


@dataclass(slots=True)
class Tables:
    """Entry i of each table is the block with tokens i * block_size onwards; both tables have the same length.

    `full` serves the full-attention layers and keeps everything. `sliding` serves the sliding layers; entries before
    `dropped` are DROPPED.
    """

    full: array[int] = field(default_factory=no_entries)
    sliding: array[int] = field(default_factory=no_entries)
    dropped: int = 0
    hashes: list[bytes] = field(default_factory=list)
    sealed: int = 0  # blocks already offered to the prefix cache
    keep: frozenset[int] = frozenset()  # sliding entries to be evicted last: a later request may continue there

    @property
    def length(self) -> int:
        return len(self.full)

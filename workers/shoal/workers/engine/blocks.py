"""Who owns which KV block."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A fixed set of blocks. A block has one owner or is free; the same block is never handed out twice."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has checked `num_free` (the schedule counted them)."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Their contents may be overwritten at once."""
        self._free.extend(blocks)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Every block is free or owned, exactly once. Called when idle and after every test."""
        seen = [*self._free, *owned]
        assert len(seen) == len(set(seen)) == self.num_blocks, (
            f"{self.num_blocks} blocks, but {len(seen)} accounted for, {len(set(seen))} distinct"
        )

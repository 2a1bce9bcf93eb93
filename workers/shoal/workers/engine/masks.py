"""What may be chosen, one bit per token, as the device's sampler reads it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # as in sequence.py
    from shoal.workers.constraint.cursor import Cursor
    from shoal.workers.constraint.vocabulary import Ids

_KEPT = 64

Bits = NDArray[np.int32]

_NOTHING = np.zeros(0, dtype=np.int64)


class Masks:
    """Those last made are kept by the list that they were made of: constraints give the same lists again and again."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._kept: OrderedDict[tuple[int, bool, frozenset[int]], tuple[weakref.ref[Ids], Bits]] = OrderedDict()

    def row(self, masks: list[Bits], cursor: Cursor | None, early: frozenset[int]) -> int:
        """The row of `masks` that says what may come, added if need be; -1: anything may. `early` may not come yet.

        Raises ConstraintError.
        """
        barred = cursor.barred() if cursor is not None else None
        if cursor is not None and barred is None:
            bits = self._of(cursor.allowed(), True, early)
        elif barred is not None or early:
            bits = self._of(barred if barred is not None else _NOTHING, False, early)
        else:
            return -1
        for i, known in enumerate(masks):
            if known is bits:
                return i
        masks.append(bits)
        return len(masks) - 1

    def _of(self, ids: Ids, allowed: bool, early: frozenset[int]) -> Bits:
        """`ids` are all that may come, or all that may not; `early` may not, unless nothing else is left."""
        key = (id(ids), allowed, early)
        found = self._kept.get(key)
        if found is not None and found[0]() is ids:
            self._kept.move_to_end(key)
            return found[1]
        may = np.zeros(-(-self._vocab_size // 32) * 32, dtype=np.bool_)
        may[: self._vocab_size] = not allowed
        may[ids] = allowed
        if early:
            kept = may.copy()
            kept[list(early)] = False
            may = kept if kept.any() else may
        bits = np.packbits(may, bitorder="little").view(np.int32)
        self._kept[key] = weakref.ref(ids), bits
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return bits

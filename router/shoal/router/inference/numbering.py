"""Cursors: where an event stands in its sequence, whatever the batching of the engine's steps."""

from __future__ import annotations

from shoal.proto.v1.inference_pb2 import Cursor


class Numbering:
    """Numbers the events of one sequence as (tokens consumed, position among the events of the same token).

    >>> numbering = Numbering()
    >>> [(c.offset, c.k) for c in (numbering.next(0), numbering.next(1), numbering.next(1), numbering.next(2))]
    [(0, 0), (1, 0), (1, 1), (2, 0)]
    """

    def __init__(self) -> None:
        self._offset, self._k = 0, -1

    def next(self, offset: int) -> Cursor:
        """The cursor of the next event; `offset` never goes back."""
        assert offset >= self._offset, f"event {offset} after {self._offset}"
        self._k = self._k + 1 if offset == self._offset else 0
        self._offset = offset
        return Cursor(offset=offset, k=self._k)

    def last(self) -> Cursor:
        """The cursor after the last event, for an error that ends the sequence."""
        return self.next(self._offset)

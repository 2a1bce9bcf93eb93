"""Finding the allowed tokens of a whole batch while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal.workers.errors import ConstraintError

if TYPE_CHECKING:  # as in engine/sequence.py
    from shoal.workers.constraint.cursor import Cursor


class Ahead:
    """One thread beside an engine's."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="constraint")

    @contextlib.contextmanager
    def finding(self, cursors: Sequence[Cursor]) -> Iterator[None]:
        """Inside, the cursors belong to the other thread; afterwards what they allow is known."""
        if not cursors:
            yield
            return
        found = self._thread.submit(_find, cursors)
        try:
            yield
        finally:
            found.result()


def _find(cursors: Sequence[Cursor]) -> None:
    for cursor in cursors:
        with contextlib.suppress(ConstraintError):  # raised again where the tokens are needed
            cursor.allowed()

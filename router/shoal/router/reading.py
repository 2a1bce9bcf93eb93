"""What another server says, read up to a size and a time: one that says a byte now and then holds nobody for ever."""

from __future__ import annotations

import time
from typing import Protocol


class Answer(Protocol):
    """As `urllib.request.urlopen` gives it."""

    def read1(self, n: int = -1, /) -> bytes:
        """At most `n` bytes, as soon as there are any; none at the end."""
        ...


def read_within(answer: Answer, most: int, seconds: float) -> bytes:
    """All of it, at most `most` bytes. Raises TimeoutError when it takes longer, OSError as the connection does."""
    parts, size, until = [], 0, time.monotonic() + seconds
    while size < most and (part := answer.read1(min(65_536, most - size))):
        if time.monotonic() > until:
            raise TimeoutError(f"it was not said within {seconds} seconds")
        parts.append(part)
        size += len(part)
    return b"".join(parts)

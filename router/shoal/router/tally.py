"""What the request that is being served has used so far. Everything below `Front` finds it in its context."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Tokens of one request, over all its choices."""

    prompt: int = 0
    generated: int = 0
    reasoning: int = 0
    """Of those generated; known at the end."""
    cached: int = 0
    """Of the prompt, found in a worker's cache; known at the end."""
    on_first: Callable[[], None] = lambda: None
    """Called with the first token of any choice."""


CURRENT: ContextVar[Tally | None] = ContextVar("tally", default=None)
"""The tally of the request that this task serves."""

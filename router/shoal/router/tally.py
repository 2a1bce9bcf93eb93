"""What the request that is being served has used so far. Everything below `Front` finds it in its context."""

from __future__ import annotations

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


CURRENT: ContextVar[Tally | None] = ContextVar("tally", default=None)
"""The tally of the request that this task serves."""

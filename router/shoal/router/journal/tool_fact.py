"""What became of a call of a tool on the server, as it is kept before the model reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolFact:
    """The answer to one call.

    >>> ToolFact.from_bytes(ToolFact("42", False, 0.5).to_bytes())
    ToolFact(content='42', failed=False, seconds=0.5)
    """

    content: str
    failed: bool
    seconds: float
    """What the call took of the time that the turn's tools have."""

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps([self.content, self.failed, self.seconds]).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> ToolFact:
        """What `to_bytes` made."""
        content, failed, seconds = json.loads(raw)
        return cls(content, failed, seconds)

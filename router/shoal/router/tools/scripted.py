"""A tool that answers what it is told to: the fake behind the seam."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from shoal.router.harmony.namespace import Namespace
from shoal.router.tools.runner import ToolCall, ToolOutput


@dataclass(slots=True)
class ScriptedTool:
    """Gives its answers in turn, the last one for ever; `seconds` is how long each takes. Remembers the calls."""

    namespace: Namespace
    answers: Sequence[ToolOutput]
    seconds: float = 0.0
    channel: Literal["analysis", "commentary"] = "analysis"
    content_type: str = "code"
    calls: list[ToolCall] = field(default_factory=list)

    async def run(self, call: ToolCall) -> ToolOutput:
        """See `ToolRunner`."""
        self.calls.append(call)
        await asyncio.sleep(self.seconds)
        return self.answers[min(len(self.calls), len(self.answers)) - 1]

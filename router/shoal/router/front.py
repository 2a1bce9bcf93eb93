"""What stands before and after every generation, whichever API it came through.

the caller's credential still counts → there is room → the events
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.door import Door
from shoal.router.admission import Admission
from shoal.router.call import Call
from shoal.router.inference.chat import Chat
from shoal.router.inference.generate import Generator
from shoal.router.metrics import Metrics

_Event = TypeVar("_Event")


@dataclass(frozen=True, slots=True)
class Front:
    """Serves the two calls that generate."""

    chat: Chat
    generator: Generator
    door: Door
    admission: Admission
    metrics: Metrics

    def chats(self, asked: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of a turn. Raises as `Chat.events` does, and whatever stands before it."""
        return self._guarded(lambda: self.chat.events(asked, call), call)

    def generations(self, asked: api.GenerateRequest, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """The same for raw generation."""
        return self._guarded(lambda: self.generator.events(asked, call), call)

    async def _guarded(
        self, events: Callable[[], AsyncGenerator[_Event, None]], call: Call
    ) -> AsyncGenerator[_Event, None]:
        async with (
            self.door.served(call.caller),
            self.admission.admitted() as waited,
            contextlib.aclosing(events()) as opened,
        ):
            self.metrics.queue_time.observe(waited)
            async for event in opened:
                yield event

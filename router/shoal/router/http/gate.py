"""Where an HTTP request becomes a call: whose it is, until when, and whether there is room for it.

Who asks was established by the rim, as in gRPC.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from starlette.requests import Request

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.caller import current_caller
from shoal.router.access.door import Door
from shoal.router.admission import Admission
from shoal.router.call import Call, traceparent_of
from shoal.router.inference.chat import Chat
from shoal.router.inference.generate import Generator
from shoal.router.inference.resolve import checked_name
from shoal.router.metrics import Metrics
from shoal.wire.deadlines import Deadline

_Event = TypeVar("_Event")


@dataclass(frozen=True, slots=True)
class Gate:
    """The service behind both APIs, entered from HTTP."""

    chat: Chat
    generator: Generator
    admission: Admission
    metrics: Metrics
    max_request_seconds: float
    door: Door

    def call(self, request: Request) -> Call:
        """The call of a request. Raises FieldError for an `x-request-id` that is no name."""
        remaining = self.max_request_seconds
        call = Call(
            caller=current_caller(),
            deadline=Deadline(remaining, time.time() + remaining),
            request_id=checked_name("x-request-id", request.headers.get("x-request-id", "")),
            traceparent=traceparent_of(request.headers.get("traceparent")),
        )
        structlog.contextvars.bind_contextvars(request=call.request_id, work=call.work_id)
        return call

    def chats(self, asked: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of a turn, once there is room. Raises as `Chat.events` and `Admission.admitted` do."""
        return self._admitted(lambda: self.chat.events(asked, call))

    def generations(self, asked: api.GenerateRequest, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """The same for raw generation."""
        return self._admitted(lambda: self.generator.events(asked, call))

    async def _admitted(self, events: Callable[[], AsyncGenerator[_Event, None]]) -> AsyncGenerator[_Event, None]:
        async with self.admission.admitted() as waited, contextlib.aclosing(events()) as opened:
            self.metrics.queue_time.observe(waited)
            async for event in opened:
                yield event

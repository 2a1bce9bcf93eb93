"""Where an HTTP request becomes a call: whose it is, and until when.

Who asks was established by the rim, as in gRPC.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import structlog
from starlette.requests import Request

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.access.caller import current_caller
from shoal.router.access.door import Door
from shoal.router.call import Call, traceparent_of
from shoal.router.front import Front
from shoal.router.inference.chat import Chat
from shoal.router.inference.once import Once
from shoal.router.inference.resolve import checked_name
from shoal.router.metrics import Metrics
from shoal.wire.deadlines import Deadline


@dataclass(frozen=True, slots=True)
class Gate:
    """The service behind both APIs, entered from HTTP."""

    front: Front
    max_request_seconds: float

    @property
    def door(self) -> Door:
        """Who lets requests in."""
        return self.front.protection.door

    @property
    def chat(self) -> Chat:
        """What serves turns."""
        return self.front.chat

    @property
    def metrics(self) -> Metrics:
        """What is counted."""
        return self.front.watch.metrics

    def call(self, request: Request) -> Call:
        """The call of a request. Raises FieldError for an `x-request-id` that is no name."""
        remaining = self.max_request_seconds
        call = Call(
            caller=current_caller(),
            deadline=Deadline(remaining, time.time() + remaining),
            request_id=checked_name("x-request-id", request.headers.get("x-request-id", "")),
            traceparent=traceparent_of(request.headers.get("traceparent")),
            idempotency_key=checked_name("idempotency-key", request.headers.get("idempotency-key", "")),
        )
        structlog.contextvars.bind_contextvars(request=call.request_id, work=call.work_id)
        return call

    def chats(self, asked: api.ChatRequest, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of a turn, once there is room. Raises as `Front` does."""
        return self.front.chats(asked, call)

    def repeated(self, asked: api.ChatRequest, first: str, call: Call) -> AsyncGenerator[api.ChatResponse, None]:
        """The events of the turn that the request `first` asked for, which is asked for again."""
        return self.front.repeated(asked, first, call)

    @property
    def once(self) -> Once:
        """What knows which request has a key."""
        return self.front.once

    def resumed(self, asked: api.ResumeRequest, call: Call) -> AsyncGenerator[api.ResumeResponse, None]:
        """The same for a request that another router began."""
        return self.front.resumed(asked, call)

    async def forget(self, tenant: str, work_id: str) -> None:
        """Nothing of a request that is over shall be left in the journal. Raises SessionsAwayError."""
        await self.front.resumer.keeper.drop(tenant, work_id)

    async def can_resume(self, tenant: str, name: str) -> bool:
        """Whether there is such a request to go on with. Raises SessionsAwayError."""
        return await self.front.resumer.keeper.knows(tenant, name)

    def generations(self, asked: api.GenerateRequest, call: Call) -> AsyncGenerator[api.GenerateResponse, None]:
        """The same for raw generation."""
        return self.front.generations(asked, call)

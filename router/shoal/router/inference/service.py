"""The public RPCs: what is asked is told to the front, its events are relayed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc.aio
import structlog

from shoal.proto.v1 import inference_pb2 as api
from shoal.proto.v1.inference_pb2_grpc import InferenceServiceServicer
from shoal.router.access.caller import current_caller
from shoal.router.call import Call, traceparent_of
from shoal.router.front import Front
from shoal.router.inference.models import Models
from shoal.router.inference.resolve import checked_name
from shoal.wire.deadlines import deadline_of

_Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True, slots=True)
class InferenceService(InferenceServiceServicer):
    """Raises WireError; the rim translates it and closes the generators, which cancels what runs."""

    front: Front
    models: Models
    max_request_seconds: float

    async def Generate(  # noqa: N802  # the generated base class names it
        self, request: api.GenerateRequest, context: _Context
    ) -> AsyncGenerator[api.GenerateResponse, None]:
        """See inference.proto."""
        call = self._call(request.request_id, context)
        async with contextlib.aclosing(self.front.generations(request, call)) as events:
            async for event in events:
                yield event

    async def Chat(  # noqa: N802  # the generated base class names it
        self, request: api.ChatRequest, context: _Context
    ) -> AsyncGenerator[api.ChatResponse, None]:
        """See inference.proto."""
        call = self._call(request.request_id, context)
        async with contextlib.aclosing(self.front.chats(request, call)) as events:
            async for event in events:
                yield event

    async def Resume(  # noqa: N802  # the generated base class names it
        self, request: api.ResumeRequest, context: _Context
    ) -> AsyncGenerator[api.ResumeResponse, None]:
        """See inference.proto."""
        async with contextlib.aclosing(self.front.resumed(request, self._call("", context))) as events:
            async for event in events:
                yield event

    async def Tokenize(  # noqa: N802  # the generated base class names it
        self, request: api.TokenizeRequest, context: _Context
    ) -> api.TokenizeResponse:
        """See inference.proto."""
        return await self.models.tokenized(request, current_caller().tenant)

    async def ListModels(  # noqa: N802  # the generated base class names it
        self, request: api.ListModelsRequest, context: _Context
    ) -> api.ListModelsResponse:
        """See inference.proto."""
        return self.models.served()

    def _call(self, request_id: str, context: _Context) -> Call:
        metadata = dict(context.invocation_metadata() or ())
        call = Call(
            caller=current_caller(),
            deadline=deadline_of(context, self.max_request_seconds),
            request_id=checked_name("request_id", request_id),
            traceparent=traceparent_of(metadata.get("traceparent")),
        )
        structlog.contextvars.bind_contextvars(request=call.request_id, work=call.work_id)  # ends with the call's task
        return call

"""A client that lost its stream goes on: every event behind what it has seen, from whichever router it asks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.errors import FieldError
from shoal.router.inference.chat import Chat
from shoal.router.inference.generate import Generator
from shoal.router.inference.resolve import checked_name
from shoal.router.journal.keeper import Keeper

Event = api.ChatResponse | api.GenerateResponse


@dataclass(frozen=True, slots=True)
class Resumer:
    """Serves `Resume`."""

    keeper: Keeper
    chat: Chat
    generator: Generator

    async def events(self, request: api.ResumeRequest, call: Call) -> AsyncGenerator[Event, None]:
        """The events that the client has not seen, each choice's in order. Raises WireError; closing it leaves the
        request to whoever resumes it next."""
        if not checked_name("request_id", request.request_id):
            raise FieldError("request_id", "is missing: `started` told it")
        seen = {choice.choice: (choice.cursor.offset, choice.cursor.k) for choice in request.seen}
        reopened = await self.keeper.reopen(call.tenant, request.request_id)
        record = reopened.record
        again = replace(
            call,
            work_id=record.work_id,
            request_id=record.request_id,
            traceparent=record.traceparent,
            origin=record.origin,
        )
        if record.HasField("chat"):
            async with contextlib.aclosing(self.chat.resumed(reopened, again)) as turn:
                async for event in turn:
                    if _is_new(event, seen):
                        yield event
        else:
            async with contextlib.aclosing(self.generator.resumed(reopened, again)) as texts:
                async for text in texts:
                    if _is_new(text, seen):
                        yield text


def _is_new(event: Event, seen: dict[int, tuple[int, int]]) -> bool:
    return (event.cursor.offset, event.cursor.k) > seen.get(event.choice, (-1, -1))

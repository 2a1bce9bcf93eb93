"""One response from its request to its end: placed, generated, stored before the end is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.call import Call
from shoal.router.http.errors import ResponseOverError, problem_of, renaming
from shoal.router.http.gate import Gate
from shoal.router.http.responses.answer import Event, ResponseAnswer
from shoal.router.http.responses.conversation import Conversations, Place
from shoal.router.http.responses.items import items_of, read_items
from shoal.router.http.responses.records import Record
from shoal.router.http.responses.references import resolved
from shoal.router.http.responses.request import ResponseBody, rename, turn_of


@dataclass(frozen=True, slots=True)
class Run:
    """What serves one response."""

    gate: Gate
    conversations: Conversations
    body: ResponseBody
    call: Call
    answer: ResponseAnswer
    items: list[dict[str, Any]]
    stored: bool
    goes_on: bool = False
    """Whether another router began it."""
    first: str = ""
    """Our name for the request that has the idempotency key of this one and was there before; empty: there is none."""

    @classmethod
    def again(cls, gate: Gate, conversations: Conversations, record: Record, call: Call) -> Run:
        """What goes on with a response that another router began; `call` is anybody's of the same tenant."""
        body, response_id = ResponseBody.model_validate(record.body), record.response["id"]
        call = replace(call, work_id=response_id.removeprefix("resp_"))
        answer = ResponseAnswer(body, response_id, record.response["created_at"], stored=True)
        return cls(gate, conversations, body, call, answer, record.items, stored=True, goes_on=True)

    @classmethod
    async def of(cls, gate: Gate, conversations: Conversations, body: ResponseBody, call: Call) -> Run:
        """Checks what can be checked without the previous response. Raises ParameterError, SessionsAwayError.

        Where the caller does not say whether to store it, it is stored if that is possible.
        """
        needs = bool(body.background or body.previous_response_id)
        stored = conversations.kept if body.store is None else body.store
        away = stored and body.store is None and not needs and not await conversations.required_records().are_here()
        stored = stored and not away
        if stored or body.background:
            conversations.required_records()
            stored = True
        if body.parallel_tool_calls is None:
            body = body.model_copy(update={"parallel_tool_calls": gate.chat.openings.parallel_calls})
        items = await resolved(
            items_of(body.input), lambda name: conversations.required_records().load(call.tenant, name)
        )
        if not body.previous_response_id:
            turn_of(body, read_items(items, continues=False)[0], call.request_id)
        answer = ResponseAnswer(body, f"resp_{call.work_id}", time.time(), stored=stored)
        if away:
            answer.warn("not_stored", "sessions cannot be reached: this response cannot be read again or continued")
        return cls(gate, conversations, body, call, answer, items, stored)

    @property
    def response_id(self) -> str:
        """Its name."""
        return f"resp_{self.first or self.call.work_id}"

    def repeating(self, first: str, created: float) -> Run:
        """What tells the response again that the request `first` asked for, at `created`."""
        answer = ResponseAnswer(self.body, f"resp_{first}", created, stored=self.stored)
        return replace(self, answer=answer, first=first)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Every event but those of a failure, which is raised. Closing it ends the work and stores nothing.

        One that goes on tells all of them again, from the first.
        """
        if self.goes_on or self.first:
            async with contextlib.aclosing(self._resumed()) as again:
                async for told in again:
                    yield told
            return
        instructions, previous = self._kept(self.body.instructions or ""), self.body.previous_response_id or None
        placing = self.conversations.place(self.call, self.response_id, previous, instructions, store=self.stored)
        async with self._releasing(), placing as place:
            request, places = self._request(place)
            request.idempotency_key = self.call.idempotency_key
            with renaming(partial(rename, places=places)):
                async with contextlib.aclosing(self.gate.chats(request, self.call)) as turn:
                    async for event in turn:
                        for told in self._told(event):
                            yield told
            if self.stored:
                await self.save(place)
        for told in self.answer.end():
            yield told

    async def _resumed(self) -> AsyncGenerator[Event, None]:
        place = Place()
        async with contextlib.aclosing(self._again()) as turn:
            async for event in turn:
                if event.HasField("started"):
                    place = Place(event.started.session_id, event.started.turn)
                for told in self._told(event):
                    yield told
        if self.stored:
            await self.save(place)
        for told in self.answer.end():
            yield told

    async def _again(self) -> AsyncGenerator[api.ChatResponse, None]:
        if self.first:
            request, _ = self._request(Place())
            with renaming(rename):
                async with contextlib.aclosing(self.gate.repeated(request, self.first, self.call)) as events:
                    async for event in events:
                        yield event
            return
        asked = api.ResumeRequest(request_id=self.call.work_id)
        async with contextlib.aclosing(self.gate.resumed(asked, self.call)) as turn:
            async for again in turn:
                yield again.chat

    @contextlib.asynccontextmanager
    async def _releasing(self) -> AsyncGenerator[None, None]:
        """What fails before a worker took it came to nothing: its key is free again."""
        try:
            yield
        except Exception:
            if self.call.idempotency_key and not self.answer.begun:
                await self.gate.once.release(self.call.idempotency_key, self.call)
            raise

    def _told(self, event: api.ChatResponse) -> list[Event]:
        return self.answer.begin() if event.HasField("started") else self.answer.read(event)

    async def save(self, place: Place | None = None) -> None:
        """Store the response as of now; `place` once it is part of its conversation."""
        body = self.body
        record = Record(
            response=self._kept(self.answer.snapshot()),
            session_id="" if place is None else place.session_id,
            turn=-1 if place is None else place.turn,
            instructions=self._kept(body.instructions or ""),
            items=self._kept(self.items),
            streamed=bool(body.background and body.stream),
            body=self._kept(body.model_dump(mode="json", by_alias=True, exclude_unset=True))
            if body.background
            else None,
        )
        first = self.answer.status == "queued" or not body.background
        kept = await self.conversations.required_records().save(self.call.tenant, record, existing=not first)
        if not kept and not self.first and self.answer.status not in ("failed", "cancelled"):
            raise ResponseOverError(f"response '{self.response_id}' was deleted, or given up, while it was worked on")

    def kept_event(self, event: Event) -> Event:
        """An event as it may be stored."""
        return {**event, "response": self._kept(event["response"])} if "response" in event else event

    def _kept(self, value: Any) -> Any:
        """As it may be stored."""
        return self.gate.front.protection.kept(self.call.tenant, value)

    async def fail(self, error: BaseException) -> None:
        """Store that it failed."""
        self.answer.fail(problem_of(error))
        await self.save()

    def _request(self, place: Place) -> tuple[api.ChatRequest, list[str]]:
        """The turn, and where each of its messages came from."""
        messages, places = read_items(self.items, continues=bool(self.body.previous_response_id))
        if self.body.instructions and not place.instructed:
            instructions = api.Message(role=api.ROLE_DEVELOPER, content=self.body.instructions)
            messages, places = [instructions, *messages], ["instructions", *places]
        request = turn_of(self.body, messages, self.call.request_id)
        if place.session_id:
            request.session_id, request.expected_turn = place.session_id, place.turn
            request.session_ttl_seconds = place.ttl_seconds
        return request, places

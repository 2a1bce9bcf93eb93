"""`/v1/responses`: create, read, delete, cancel, and what was said to one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from shoal.router.call import Call
from shoal.router.errors import SessionsAwayError
from shoal.router.http.body import parse
from shoal.router.http.content import a_number, one_of
from shoal.router.http.errors import AbsentResponseError, ParameterError, Problem
from shoal.router.http.gate import Gate
from shoal.router.http.reply import Reply, Stream, to_event
from shoal.router.http.responses.answer import Event, ResponseAnswer
from shoal.router.http.responses.background import CANCEL_SECONDS, LOOK_SECONDS, Background
from shoal.router.http.responses.conversation import Conversations
from shoal.router.http.responses.records import Record
from shoal.router.http.responses.references import listed
from shoal.router.http.responses.request import ResponseBody
from shoal.router.http.responses.run import Run
from shoal.router.http.rim import Asked

MOST_EVENTS = 2**31


class Responses:
    """Serves the methods over a gate. `close` ends what runs in the background."""

    def __init__(self, gate: Gate, conversations: Conversations) -> None:
        self._gate, self._conversations = gate, conversations
        self._background = Background(gate, conversations)

    async def create(self, asked: Asked, call: Call) -> Reply | Stream:
        """A new response: whole, in pieces, or in the background. Raises WireError."""
        body = parse(ResponseBody, asked.body)
        if call.idempotency_key:
            call = replace(call, digest=_digest_of(asked.body))
        run = await Run.of(self._gate, self._conversations, body, call)
        if call.idempotency_key and (first := await self._first(run)) != call.work_id:
            return await self._repeated(run, first)
        if body.background:
            queued = run.answer.snapshot()
            await self._background.start(run)
            if body.stream:
                return Stream(self._background.follow(call, run.response_id, -1), _numbered_from(0))
            return Reply(queued)
        return await self._told(run)

    async def _told(self, run: Run) -> Reply | Stream:
        """As it is generated, or whole."""
        if run.body.stream:
            return Stream(self._pieces(run), partial(_last_words, run.answer))
        async with contextlib.aclosing(run.events()) as events:
            async for _ in events:
                pass
        return Reply(run.answer.snapshot())

    async def _first(self, run: Run) -> str:
        """Our name for the request that has this one's idempotency key. Raises as `Once.owner` does."""
        tenant, records = run.call.tenant, self._conversations.records

        async def known(work_id: str) -> bool:
            return records is not None and await records.load(tenant, f"resp_{work_id}") is not None

        return await self._gate.once.owner(run.call.idempotency_key, run.call.digest, run.call, known)

    async def _repeated(self, run: Run, first: str) -> Reply | Stream:
        """The response that the request `first` asked for: as it is stored, or told again, or gone on with."""
        call, response_id = run.call, f"resp_{first}"
        record = await self._conversations.required_records().load(call.tenant, response_id) if run.stored else None
        if record is not None and run.body.background:
            if run.body.stream:
                return Stream(self._background.follow(call, response_id, -1), _numbered_from(0))
            return Reply(await self._background.as_of_now(call, record))
        if record is not None and record.over and not run.body.stream:
            return Reply(record.response)
        created = time.time() if record is None else record.response["created_at"]
        return await self._told(run.repeating(first, created))

    async def read(self, asked: Asked, call: Call) -> Reply | Stream:
        """A stored response as of now, or its events. Raises AbsentResponseError."""
        record = await self._record(asked, call)
        if asked.query.get("stream", "false") != "true":
            return Reply(await self._background.as_of_now(call, record))
        if not record.streamed:
            message = (
                "Only a response that was created with 'background' and 'stream' can be streamed: read it instead."
            )
            raise ParameterError(message, "stream")
        after = a_number(asked.query, "starting_after", -1, least=0, most=MOST_EVENTS)
        return Stream(self._background.follow(call, record.response["id"], after), _numbered_from(after + 1))

    async def delete(self, asked: Asked, call: Call) -> Reply:
        """Forget a response; the conversation stays while other responses are part of it."""
        response_id = asked.path["response_id"]
        record = await self._record(asked, call)
        await self._background.stop(response_id)
        await self._conversations.forget(call.tenant, record)
        await self._gate.forget(call.tenant, response_id.removeprefix("resp_"))
        return Reply({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, asked: Asked, call: Call) -> Reply:
        """Stop a response that runs in the background, on whatever router that is."""
        record = await self._record(asked, call)
        if not record.response["background"]:
            raise ParameterError("Only responses that run in the background can be cancelled.", "response_id")
        response_id = asked.path["response_id"]
        if not record.over:
            await self._background.stop(response_id)
            await self._conversations.required_records().ask_to_stop(call.tenant, response_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_SECONDS):
                    while not record.over:
                        await asyncio.sleep(LOOK_SECONDS)
                        record = await self._record(asked, call)
        return Reply(await self._background.as_of_now(call, record))

    async def input_items(self, asked: Asked, call: Call) -> Reply:
        """What was said to a response, page by page, latest first as OpenAI does, unless `order=asc`."""
        record = await self._record(asked, call)
        items = listed(record)
        if one_of(asked.query.get("order", "desc"), ("asc", "desc"), "order") == "desc":
            items.reverse()
        if (after := asked.query.get("after")) is not None:
            place = next((i for i, item in enumerate(items) if item["id"] == after), None)
            if place is None:
                raise ParameterError(f"There is no item '{after}' in this response.", "after")
            items = items[place + 1 :]
        limit = a_number(asked.query, "limit", 20, least=1, most=100)
        page = items[:limit]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return Reply({"object": "list", "data": page, "has_more": len(items) > limit, **ends})

    async def close(self, patience: float) -> None:
        """End what runs in the background, after `patience` seconds at the latest."""
        await self._background.close(patience)

    async def _pieces(self, run: Run) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(run.events()) as events:
                async for event in events:
                    yield to_event(event, event["type"])
        except Exception as error:
            if run.stored and run.answer.status == "in_progress":
                await _save_failure(run, error)
            raise

    async def _record(self, asked: Asked, call: Call) -> Record:
        response_id = asked.path["response_id"]
        record = await self._conversations.required_records().load(call.tenant, response_id)
        if record is None:
            raise AbsentResponseError(f"Response with id '{response_id}' not found.")
        return record


def _digest_of(body: Mapping[str, Any]) -> str:
    """What is asked, however its fields are ordered."""
    return hashlib.sha256(b"response" + json.dumps(body, sort_keys=True).encode()).hexdigest()


async def _save_failure(run: Run, error: BaseException) -> None:
    with contextlib.suppress(SessionsAwayError):
        await run.fail(error)


def _last_words(answer: ResponseAnswer, problem: Problem) -> Sequence[bytes]:
    events: list[Event] = answer.fail(problem)
    return [to_event(event, event["type"]) for event in events]


def _numbered_from(number: int) -> Callable[[Problem], Sequence[bytes]]:
    """The last words of a stream of kept events that breaks off: the response itself goes on."""

    def told(problem: Problem) -> Sequence[bytes]:
        error = {"code": problem.code, "message": problem.message, "param": problem.param}
        return [to_event({"type": "error", "sequence_number": number, **error}, "error")]

    return told

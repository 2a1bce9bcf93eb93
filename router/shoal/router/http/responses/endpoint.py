"""`/v1/responses`: create, read, delete, cancel, and what was said to one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

import structlog

from shoal.router.call import Call
from shoal.router.errors import SessionsAwayError
from shoal.router.http.body import parse
from shoal.router.http.errors import AbsentResponseError, ParameterError, Problem
from shoal.router.http.gate import Gate
from shoal.router.http.reply import Reply, Stream, to_event
from shoal.router.http.responses.answer import Event, ResponseAnswer
from shoal.router.http.responses.conversation import Conversations
from shoal.router.http.responses.records import Record
from shoal.router.http.responses.request import ResponseBody
from shoal.router.http.responses.run import Run
from shoal.router.http.rim import Asked

_WATCH_SECONDS = 0.5
_CANCEL_SECONDS = 3.0
_GONE = {"code": "server_error", "message": "the router that worked on this response is gone; ask again"}

_log = structlog.get_logger(__name__)


class Responses:
    """Serves the methods over a gate. `close` ends what runs in the background."""

    def __init__(self, gate: Gate, conversations: Conversations) -> None:
        self._gate, self._conversations = gate, conversations
        self._running: dict[str, asyncio.Task[None]] = {}

    async def create(self, asked: Asked, call: Call) -> Reply | Stream:
        """A new response: whole, in pieces, or in the background. Raises WireError."""
        body = parse(ResponseBody, asked.body)
        run = Run.of(self._gate, self._conversations, body, call)
        if body.background:
            return await self._start(run)
        if body.stream:
            return Stream(self._pieces(run), partial(_last_words, run.answer))
        async with contextlib.aclosing(run.events()) as events:
            async for _ in events:
                pass
        return Reply(run.answer.snapshot())

    async def read(self, asked: Asked, call: Call) -> Reply:
        """A stored response as of now. Raises AbsentResponseError."""
        if asked.query.get("stream", "false") == "true":
            raise ParameterError("A stored response cannot be streamed: read it again.", "stream")
        return Reply(await self._as_of_now(call.tenant, await self._record(asked, call)))

    async def delete(self, asked: Asked, call: Call) -> Reply:
        """Forget a response; the conversation stays while other responses are part of it."""
        response_id = asked.path["response_id"]
        record = await self._record(asked, call)
        await self._stop(call.tenant, response_id)
        await self._conversations.forget(call.tenant, record)
        return Reply({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, asked: Asked, call: Call) -> Reply:
        """Stop a response that runs in the background, on whatever router that is."""
        record = await self._record(asked, call)
        if not record.response["background"]:
            raise ParameterError("Only responses that run in the background can be cancelled.", "response_id")
        response_id = asked.path["response_id"]
        if not record.over:
            await self._stop(call.tenant, response_id)
            await self._conversations.required_records().ask_to_stop(call.tenant, response_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    while not record.over:
                        await asyncio.sleep(_WATCH_SECONDS / 5)
                        record = await self._record(asked, call)
        return Reply(await self._as_of_now(call.tenant, record))

    async def input_items(self, asked: Asked, call: Call) -> Reply:
        """What was said to a response, latest first as OpenAI does, unless `order=asc`."""
        record = await self._record(asked, call)
        items = [_listed(item, record.response["id"], index) for index, item in enumerate(record.items)]
        if asked.query.get("order", "desc") != "asc":
            items.reverse()
        ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
        return Reply({"object": "list", "data": items, "has_more": False, **ends})

    async def close(self) -> None:
        """End what runs in the background; each is stored as failed."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel("closing")
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pieces(self, run: Run) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(run.events()) as events:
                async for event in events:
                    yield to_event(event, event["type"])
        except Exception as error:
            if run.stored and run.answer.status == "in_progress":
                await _save_failure(run, error)
            raise

    async def _start(self, run: Run) -> Reply:
        """Answer at once, go on in the background."""
        await self._conversations.required_records().stay_alive(run.call.tenant, run.response_id)
        await run.save()
        reply = Reply(run.answer.snapshot())
        task = asyncio.create_task(self._in_background(run), name=f"response {run.response_id}")
        self._running[run.response_id] = task
        task.add_done_callback(lambda _: self._running.pop(run.response_id, None))
        return reply

    async def _in_background(self, run: Run) -> None:
        watching = asyncio.create_task(self._watch(run, asyncio.current_task()))
        try:
            async with asyncio.timeout(self._gate.max_request_seconds), contextlib.aclosing(run.events()) as events:
                async for event in events:
                    if event["type"] == "response.in_progress":
                        await run.save()
        except asyncio.CancelledError as error:
            if error.args == ("closing",):
                await _save_failure(run, error)
            else:
                run.answer.status = "cancelled"
                with contextlib.suppress(SessionsAwayError):
                    await run.save()
        except Exception as error:
            _log.info("background_response_failed", response=run.response_id, problem=type(error).__name__)
            await _save_failure(run, error)
        finally:
            watching.cancel()

    async def _watch(self, run: Run, task: asyncio.Task[None] | None) -> None:
        """Say that it is being worked on, and hear when it shall stop."""
        records = self._conversations.required_records()
        while True:
            with contextlib.suppress(SessionsAwayError):
                if await records.stay_alive(run.call.tenant, run.response_id) and task is not None:
                    task.cancel()
                    return
            await asyncio.sleep(_WATCH_SECONDS)

    async def _stop(self, tenant: str, response_id: str) -> None:
        """Stop it if it runs here."""
        task = self._running.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _record(self, asked: Asked, call: Call) -> Record:
        response_id = asked.path["response_id"]
        record = await self._conversations.required_records().load(call.tenant, response_id)
        if record is None:
            raise AbsentResponseError(f"Response with id '{response_id}' not found.")
        return record

    async def _as_of_now(self, tenant: str, record: Record) -> dict[str, Any]:
        """The response; one that nobody works on any more has failed."""
        response = record.response
        records = self._conversations.required_records()
        if record.over or await records.is_alive(tenant, response["id"]):
            return response
        return {**response, "status": "failed", "error": _GONE}


async def _save_failure(run: Run, error: BaseException) -> None:
    with contextlib.suppress(SessionsAwayError):
        await run.fail(error)


def _last_words(answer: ResponseAnswer, problem: Problem) -> Sequence[bytes]:
    events: list[Event] = answer.fail(problem)
    return [to_event(event, event["type"]) for event in events]


def _listed(item: dict[str, Any], response_id: str, index: int) -> dict[str, Any]:
    """An item as it is listed: with a name, and a message's text as parts."""
    listed = {"id": f"in_{response_id.removeprefix('resp_')}{index:02x}", **item}
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        more: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
        listed["content"] = [{"type": kind, "text": item["content"], **more}]
        listed.setdefault("status", "completed")
    return listed

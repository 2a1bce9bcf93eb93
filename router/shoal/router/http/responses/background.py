"""Responses that run in the background: begun here, heard of and stopped from any router.

Whoever works on one says so all the time. When that stops, the first router that is asked about the response goes on
with it from the journal; where that knows nothing of it the response has failed, and is stored so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any

import structlog

from shoal.router.call import Call
from shoal.router.errors import SessionsAwayError, StoppingError, TakenOverError
from shoal.router.http.errors import problem_of
from shoal.router.http.gate import Gate
from shoal.router.http.reply import to_event
from shoal.router.http.responses.answer import Event
from shoal.router.http.responses.conversation import Conversations
from shoal.router.http.responses.events import Writer
from shoal.router.http.responses.records import Record, Records
from shoal.router.http.responses.run import Run

CANCEL_SECONDS = 3.0
WATCH_SECONDS = 0.5
LOOK_SECONDS = 0.1
_LAST_WRITES_SECONDS = 5.0
_GONE = {"code": "server_error", "message": "the router that worked on this response is gone; ask again"}
_CLOSED = "the router that worked on this response shut down; ask again"
_CLOSING = "closing"

_log = structlog.get_logger(__name__)


class Background:
    """The background work of one router. Where there is no Redis nothing is begun."""

    def __init__(self, gate: Gate, conversations: Conversations) -> None:
        self._gate, self._conversations = gate, conversations
        self._records, self._max_seconds = conversations.records, gate.max_request_seconds
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def records(self) -> Records:
        """Where responses are stored."""
        assert self._records is not None, "a response in the background is stored"
        return self._records

    async def start(self, run: Run) -> None:
        """Store it and work on it. Raises SessionsAwayError."""
        await self.records.stay_alive(run.call.tenant, run.response_id)
        await run.save()
        self._begin(run)

    def _begin(self, run: Run) -> None:
        """Nobody waits for it: a token that expires meanwhile does not end it, a key that is revoked does."""
        run = replace(run, call=replace(run.call, caller=replace(run.call.caller, expires=0.0)))
        task = asyncio.create_task(self._work(run), name=f"response {run.response_id}")
        self._running[run.response_id] = task
        task.add_done_callback(lambda _: self._running.pop(run.response_id, None))

    async def stop(self, response_id: str) -> None:
        """Stop it if it runs here."""
        task = self._running.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self, patience: float) -> None:
        """Give what runs `patience` seconds; what then still runs is left to another router."""
        if tasks := list(self._running.values()):
            await asyncio.wait(tasks, timeout=patience)
        for task in tasks:
            task.cancel(_CLOSING)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def as_of_now(self, call: Call, record: Record) -> dict[str, Any]:
        """The response. With one that nobody works on any more this router goes on; if it cannot, it has failed."""
        response: dict[str, Any] = record.response
        response_id, tenant = response["id"], call.tenant
        if record.over or await self.records.is_alive(tenant, response_id) or await self._adopt(call, record):
            return response
        failed = replace(record, response={**response, "status": "failed", "error": _GONE})
        if await self.records.save(tenant, failed, existing=True):
            return failed.response
        ended = await self.records.load(tenant, response_id)  # somebody was faster, or ended it after all
        return failed.response if ended is None else ended.response

    async def _adopt(self, call: Call, record: Record) -> bool:
        """Whether this router goes on with it, or does so already."""
        response_id = record.response["id"]
        if response_id in self._running:
            return True
        if record.body is None or not await self._gate.can_resume(call.tenant, response_id.removeprefix("resp_")):
            return False
        await self.records.stay_alive(call.tenant, response_id)
        if response_id not in self._running:
            _log.info("background_response_adopted", response=response_id)
            self._begin(Run.again(self._gate, self._conversations, record, call))
        return True

    async def follow(self, call: Call, response_id: str, after: int) -> AsyncGenerator[bytes, None]:
        """Its events from number `after` + 1 on, until the last one or until the caller's credential ends.

        Raises SessionsAwayError and CredentialError.
        """
        async with (
            self._gate.door.served(call.caller),
            contextlib.aclosing(self._kept(call, response_id, after)) as kept,
        ):
            async for event in kept:
                self._gate.door.require(call.caller)  # a client of Redis may not hear that it shall end
                yield event

    async def _kept(self, call: Call, response_id: str, after: int) -> AsyncGenerator[bytes, None]:
        tenant = call.tenant
        number, patience = after + 1, int(_LAST_WRITES_SECONDS / LOOK_SECONDS)
        while True:
            record = await self.records.load(tenant, response_id)
            while told := await self.records.events.read(tenant, response_id, number):
                for event in told:
                    yield event
                number += len(told)
            if record is None:
                return  # deleted
            now = await self.as_of_now(call, record)
            if record.over:
                if await self._was_ended(tenant, response_id, number):
                    return
                if not patience or not await self.records.is_alive(tenant, response_id):
                    kind = "failed" if now["status"] == "failed" else "incomplete"
                    last = {"type": f"response.{kind}", "sequence_number": number, "response": now}
                    yield to_event(last, f"response.{kind}")
                    return
                patience -= 1  # its last events are still being written
            await asyncio.sleep(LOOK_SECONDS)

    async def _was_ended(self, tenant: str, response_id: str, number: int) -> bool:
        """Whether the event before `number` was the last one."""
        if number == 0:
            return False
        last = await self.records.events.read(tenant, response_id, number - 1)
        return bool(last) and last[0].split(b"\n", 1)[0] in _LAST

    async def _work(self, run: Run) -> None:
        watching = asyncio.create_task(self._watch(run, asyncio.current_task()))
        writer = Writer(self.records.events, run.call.tenant, run.response_id) if run.body.stream else None
        try:
            async with asyncio.timeout(self._max_seconds), contextlib.aclosing(run.events()) as events:
                async for event in events:
                    _tell(run, writer, [event])
                    if event["type"] == "response.in_progress":
                        await run.save()
        except TakenOverError:
            _log.info("background_response_taken_over", response=run.response_id)
        except asyncio.CancelledError as error:
            if error.args == (_CLOSING,):
                await self._leave(run, writer)
            else:
                last = run.answer.cancel()
                with contextlib.suppress(SessionsAwayError):
                    await run.save()
                    _tell(run, writer, last)
        except Exception as error:
            _log.info("background_response_failed", response=run.response_id, problem=type(error).__name__)
            await self._fail(run, error, writer)
        finally:
            watching.cancel()
            if writer is not None:
                await writer.close(_LAST_WRITES_SECONDS)

    async def _leave(self, run: Run, writer: Writer | None) -> None:
        """This router stops: another one goes on if the request is in the journal; else it has failed."""
        known = False
        with contextlib.suppress(SessionsAwayError):
            known = await self._gate.can_resume(run.call.tenant, run.call.work_id)
            if known:
                await self.records.let_go(run.call.tenant, run.response_id)
        if not known:
            await self._fail(run, StoppingError(_CLOSED), writer)

    @staticmethod
    async def _fail(run: Run, error: BaseException, writer: Writer | None) -> None:
        with contextlib.suppress(SessionsAwayError):
            await run.fail(error)
            _tell(run, writer, run.answer.fail(problem_of(error)))

    async def _watch(self, run: Run, task: asyncio.Task[None] | None) -> None:
        """Say that it is being worked on, and hear when it shall stop."""
        while True:
            with contextlib.suppress(SessionsAwayError):
                if await self.records.stay_alive(run.call.tenant, run.response_id) and task is not None:
                    task.cancel()
                    return
            await asyncio.sleep(WATCH_SECONDS)


def _tell(run: Run, writer: Writer | None, events: Iterable[Event]) -> None:
    for event in events if writer is not None else ():
        writer.put(to_event(run.kept_event(event), event["type"]))  # type: ignore[union-attr]  # there is one


_LAST = tuple(f"event: response.{status}".encode() for status in ("completed", "failed", "incomplete"))
"""How the last event of a stream begins."""

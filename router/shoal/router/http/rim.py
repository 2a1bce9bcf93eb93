"""The rim of every HTTP request, as `shoal.router.rim` is gRPC's: deadline, disconnect, errors to status, one log line.

A status is sent with the first piece of an answer and not before, so whatever fails until then is told by the status.
A client that goes away ends the work at once: that is what reaches the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shoal.router.access.door import Shown
from shoal.router.access.table import FOR_EVERYBODY, GENERATING
from shoal.router.audit.visit import Visit
from shoal.router.call import Call
from shoal.router.errors import StoppingError
from shoal.router.http.body import read_body
from shoal.router.http.errors import Problem, problem_of
from shoal.router.http.gate import Gate
from shoal.router.http.reply import Reply, Stream, to_json
from shoal.router.protection import Protection
from shoal.router.rim import Rim, joined
from shoal.wire.status import WireError, status_of

_LAST_WORDS_SECONDS = 1.0  # a client that does not read is not waited for longer


@dataclass(frozen=True, slots=True)
class Asked:
    """What an endpoint is asked."""

    body: Mapping[str, Any]
    """Empty for methods without one."""
    path: Mapping[str, str]
    """Parts of the path, by name."""
    query: Mapping[str, str]


Page = Callable[[Request], Awaitable[Response]]
Handler = Callable[[Asked, Call], Awaitable[Reply | Stream]]


class Endpoint:
    """One method of the HTTP API as an ASGI application."""

    def __init__(self, name: str, handle: Handler, gate: Gate, rim: Rim, most_bytes: int) -> None:
        """`name` is what counts and logs call it; `handle` may raise anything; larger bodies are refused."""
        self.name = name
        self._handle, self._gate, self._rim, self._most_bytes = handle, gate, rim, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        request, began, answer = Request(scope, receive), time.monotonic(), _Answer(send)
        try:
            async with asyncio.timeout(self._gate.max_request_seconds):
                about = request.path_params.get("response_id", "")
                async with self._gate.front.protection.entering(shown_by(request), self.name, about) as visit:
                    call = self._gate.call(request)
                    answer.headers["x-request-id"] = call.request_id
                    has_body = request.method == "POST"
                    body = await read_body(request.headers, request.stream(), self._most_bytes) if has_body else {}
                    asked = Asked(body, request.path_params, request.query_params)
                    await _unless_gone(request, self._answer(asked, call, answer, visit))
        except ClientDisconnect:
            self._rim.ended(self.name, began, status_of(asyncio.CancelledError()))
        except asyncio.CancelledError as error:
            self._rim.ended(self.name, began, status_of(error))
            # The task ends here in any case. Raised on, uvicorn would log it as a fault of ours.
            await _fail(answer, StoppingError("this router is shutting down", retry_after_ms=100))
        except Exception as error:
            self._rim.ended(self.name, began, status_of(error), error)
            await _fail(answer, error)
        else:
            self._rim.ended(self.name, began, None)

    async def _answer(self, asked: Asked, call: Call, answer: _Answer, visit: Visit) -> None:
        reply = await self._handle(asked, call)
        if isinstance(reply, Reply) or self.name not in GENERATING:  # else it is only about to begin
            await visit.done()
        if isinstance(reply, Reply):
            await answer.whole(reply.http_status, reply.body, reply.headers)
            return
        answer.last_words = reply.last_words
        async with contextlib.aclosing(reply.events) as pieces:
            async for piece in pieces:
                await answer.piece(piece)
        await answer.end()


def guarded(name: str, serve: Page, protection: Protection) -> Page:
    """A page that machines and people read, for whom the table lets have it."""

    async def guard(request: Request) -> Response:
        try:
            if name not in FOR_EVERYBODY:
                await protection.look(shown_by(request), name)
        except WireError as error:
            problem = problem_of(error)
            return Response(to_json(problem.body), problem.http_status, problem.headers, "application/json")
        return await serve(request)

    guard.__name__ = name
    return guard


def shown_by(request: Request) -> Shown:
    """What a request brings to prove who it is from."""
    return Shown(joined(request.headers.getlist("authorization")), request.scope.get("client_certificate", b""))


async def _fail(answer: _Answer, error: BaseException) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_SECONDS):
            await answer.fail(problem_of(error))


async def _unless_gone(request: Request, answering: Awaitable[None]) -> None:
    """Wait for the answer; when the client goes away first, cancel it and raise ClientDisconnect."""
    work, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Returns when the client went away. Only after the body was read: both come through one queue."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Answer:
    """Sends the parts of one answer, the status with the first of them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._over = False
        self.headers: dict[str, str] = {}
        """Sent with every answer."""
        self.last_words: Callable[[Problem], Sequence[bytes]] = lambda problem: ()

    async def whole(self, http_status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        content = to_json(body)
        sizes = {"content-type": "application/json", "content-length": str(len(content))}
        await self._start(http_status, {**sizes, **headers})
        await self._finish(content)

    async def piece(self, piece: bytes) -> None:
        if not self._begun:
            await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._finish(b"")

    async def fail(self, problem: Problem) -> None:
        """Tell the error by the status or, when that is sent already, by the stream's last words; of an answer that
        was given whole nothing is told any more."""
        if self._over:
            return
        if not self._begun:
            await self.whole(problem.http_status, problem.body, problem.headers)
            return
        for piece in self.last_words(problem):
            await self.piece(piece)
        await self.end()

    async def _finish(self, content: bytes) -> None:
        self._over = True
        await self._send({"type": "http.response.body", "body": content})

    async def _start(self, http_status: int, headers: Mapping[str, str]) -> None:
        self._begun = True
        pairs = [(name.encode(), value.encode()) for name, value in {**self.headers, **headers}.items()]
        await self._send({"type": "http.response.start", "status": http_status, "headers": pairs})

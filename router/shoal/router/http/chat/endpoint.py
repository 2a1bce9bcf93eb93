"""`POST /v1/chat/completions`: one turn of a conversation that the caller keeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial

from shoal.router.call import Call
from shoal.router.http.body import parse
from shoal.router.http.chat.answer import ChatAnswer, Head
from shoal.router.http.chat.messages import read_messages
from shoal.router.http.chat.request import ChatBody, Turn, rename, turn_of
from shoal.router.http.errors import renaming
from shoal.router.http.gate import Gate
from shoal.router.http.reply import DONE, Reply, Stream, error_event, to_event
from shoal.router.http.rim import Asked


class ChatCompletions:
    """Serves the method over a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def create(self, asked: Asked, call: Call) -> Reply | Stream:
        """Whole or in pieces. Raises WireError."""
        body = parse(ChatBody, asked.body)
        turn = turn_of(body, call.request_id)
        turn.request.idempotency_key = call.idempotency_key
        head = Head(id=f"chatcmpl-{call.work_id}", model=body.model, created=int(time.time()))
        answer = ChatAnswer(head, formatted=turn.formatted, logprobs=bool(body.logprobs))
        places = read_messages(body.messages)[1]
        renames = partial(rename, places=places)
        if turn.stream:
            return Stream(self._pieces(turn, call, answer, places), error_event)
        with renaming(renames):
            async with contextlib.aclosing(self._gate.chats(turn.request, call)) as events:
                async for event in events:
                    answer.pieces(event)
        return Reply(answer.whole())

    async def _pieces(
        self, turn: Turn, call: Call, answer: ChatAnswer, places: list[str]
    ) -> AsyncGenerator[bytes, None]:
        with renaming(partial(rename, places=places)):
            async with contextlib.aclosing(self._gate.chats(turn.request, call)) as events:
                async for event in events:
                    for piece in answer.pieces(event):
                        yield to_event(piece)
        if turn.include_usage:
            yield to_event(answer.usage_piece())
        yield DONE

"""A response as it comes to be: its object at any moment, and its numbered events. Pure.

    created, in_progress, (events of each item)*, completed | incomplete | failed

The object is what the events add up to, so a response read whole and one read in pieces are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.chat.answer import add_usage
from shoal.router.http.errors import Problem
from shoal.router.http.responses.output import Items
from shoal.router.http.responses.request import LOGPROBS, ResponseBody

Event = dict[str, Any]


class ResponseAnswer:
    """Reads the events of one turn."""

    def __init__(self, body: ResponseBody, response_id: str, created: float, *, stored: bool) -> None:
        """`created` is unix time, seconds; `stored` says whether the response can be read again."""
        include = body.include or ()
        suffix = response_id.removeprefix("resp_")
        self._items = Items(
            suffix,
            logprobs=LOGPROBS in include or bool(body.top_logprobs),
            outputs="code_interpreter_call.outputs" in include,
        )
        self._fixed = _echo(body, response_id, int(created), stored)
        self._usage: api.Usage | None = None
        self._warnings: list[dict[str, str]] = []
        self._number = -1
        self._failure: list[Event] = []
        self.status = "queued" if body.background else "in_progress"
        self.error: dict[str, str] | None = None
        self.incomplete: dict[str, str] | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was told."""
        return self._number >= 0

    def snapshot(self) -> dict[str, Any]:
        """The response object as of now. It does not change afterwards."""
        fixed = self._fixed
        body = {
            "id": fixed["id"],
            "object": "response",
            "created_at": fixed["created_at"],
            "status": self.status,
            "error": self.error,
            "incomplete_details": self.incomplete,
            **fixed,
            "output": json.loads(json.dumps(self._items.items)),
            "usage": response_usage(self._usage) if self._usage is not None else None,
        }
        if self._warnings:
            body["warnings"] = list(self._warnings)
        return body

    def warn(self, code: str, message: str) -> None:
        """Tell that something is not as was asked."""
        self._warnings.append({"code": code, "message": message})

    def begin(self) -> list[Event]:
        """The events before anything was generated."""
        self.status = "in_progress"
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def read(self, event: api.ChatResponse) -> list[Event]:
        """The events that an event of the turn makes; the end is told by `end`."""
        if event.HasField("warning"):
            self.warn(event.warning.code, event.warning.message)
        if event.HasField("done"):
            return self._done(event.done)
        return [self._event(*told) for told in self._items.read(event)]

    def end(self) -> list[Event]:
        """The last event, once the turn is done."""
        return [self._whole(f"response.{self.status}")]

    def cancel(self) -> list[Event]:
        """The last event when somebody stopped it: OpenAI has none of its own for that."""
        self.status = "cancelled"
        return [self._whole("response.incomplete")]

    def fail(self, problem: Problem) -> list[Event]:
        """The last events when the turn failed; the same ones however often it is told."""
        if self._failure:
            return self._failure
        self.status = "failed"
        code = "rate_limit_exceeded" if problem.http_status == 429 else "server_error"
        self.error = {"code": code, "message": problem.message}
        told = {"code": problem.code, "message": problem.message, "param": problem.param}
        self._failure = [self._event("error", told), self._whole("response.failed")]
        return self._failure

    def _done(self, done: api.Done) -> list[Event]:
        self._usage = api.Usage()
        add_usage(self._usage, done.usage)
        short = done.finish_reason == api.FINISH_REASON_LENGTH
        self.status = "incomplete" if short else "completed"
        if short:
            self.incomplete = {"reason": "max_output_tokens"}
        return [self._event(*told) for told in self._items.close(self.status)]

    def _whole(self, kind: str) -> Event:
        return self._event(kind, {"response": self.snapshot()})

    def _event(self, kind: str, fields: Mapping[str, Any]) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}


def response_usage(usage: api.Usage) -> dict[str, Any]:
    """Usage in the words of responses."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _echo(body: ResponseBody, response_id: str, created: int, stored: bool) -> dict[str, Any]:
    """What the response repeats of its request."""
    reasoning = body.reasoning
    return {
        "id": response_id,
        "created_at": created,
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": (reasoning.effort if reasoning else None) or "medium", "summary": None},
        "store": stored,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with the fields that clients expect to be there."""
    if tool.get("type") != "function":
        return tool
    return {"parameters": None, "strict": False, "description": None, **tool}

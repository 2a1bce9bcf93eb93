"""The output of a response, item by item, and the events that tell of each. Pure.

An item is open while its message is; `Items.read` closes one and opens the next as the turn goes on. A call of a tool
that runs on the server stays open until its result came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.chat.answer import logprob_of
from shoal.router.http.responses.server_calls import Told, answered, asked_more, begun


class Items:
    """The items of one response."""

    def __init__(self, suffix: str, *, logprobs: bool, outputs: bool) -> None:
        """`suffix` makes their ids unique; `outputs` includes what ran code printed."""
        self._suffix, self._logprobs, self._outputs = suffix, logprobs, outputs
        self.items: list[dict[str, Any]] = []
        self._open: int | None = None
        self._message: int | None = None
        self._asked: dict[str, str] = {}
        """What tools on the server were asked, as the model wrote it, by the item's id."""

    def read(self, event: api.ChatResponse) -> Iterator[Told]:
        """What an event of the turn means for the items."""
        match event.WhichOneof("event"):
            case "reasoning":
                yield from self._reasoning(event.reasoning)
            case "text":
                yield from self._text(event.text)
            case "tool_call":
                yield from self._call(event.tool_call)
            case "tool_result":
                yield from self._result(event.tool_result)

    def close(self, status: str = "completed") -> Iterator[Told]:
        """End the item that is open."""
        if self._open is None:
            return
        index, item = self._open, self.items[self._open]
        self._open = self._message = None
        item["status"] = status
        at = {"item_id": item["id"], "output_index": index}
        match item["type"]:
            case "reasoning":
                part = item["content"][0]
                yield "response.reasoning_text.done", {**at, "content_index": 0, "text": part["text"]}
                yield "response.content_part.done", {**at, "content_index": 0, "part": part}
            case "message":
                part = item["content"][0]
                done = {**at, "content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
                yield "response.output_text.done", done
                yield "response.content_part.done", {**at, "content_index": 0, "part": part}
            case "function_call":
                done = {**at, "name": item["name"], "arguments": item["arguments"]}
                yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": index, "item": item}

    def _begin(self, kind: str, prefix: str, **fields: Any) -> Iterator[Told]:
        yield from self.close()
        index = len(self.items)
        item = {"id": f"{prefix}_{self._suffix}{index:02x}", "type": kind, "status": "in_progress", **fields}
        self.items.append(item)
        self._open = index
        yield "response.output_item.added", {"output_index": index, "item": json.loads(json.dumps(item))}

    def _part(self, part: dict[str, Any]) -> Iterator[Told]:
        assert self._open is not None, "a part belongs to an open item"
        item = self.items[self._open]
        at = {"item_id": item["id"], "output_index": self._open, "content_index": 0}
        yield "response.content_part.added", {**at, "part": dict(part)}
        item["content"].append(part)

    def _current(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The open item, and where it is."""
        assert self._open is not None, "text belongs to an open item"
        item = self.items[self._open]
        return item, {"item_id": item["id"], "output_index": self._open}

    def _reasoning(self, delta: api.ReasoningDelta) -> Iterator[Told]:
        if self._message != delta.message or self._open is None:
            yield from self._begin("reasoning", "rs", summary=[], content=[])
            self._message = delta.message
            yield from self._part({"type": "reasoning_text", "text": ""})
        item, at = self._current()
        item["content"][0]["text"] += delta.text
        yield "response.reasoning_text.delta", {**at, "content_index": 0, "delta": delta.text}

    def _text(self, delta: api.TextDelta) -> Iterator[Told]:
        if self._message != delta.message or self._open is None:
            phase = "commentary" if delta.channel == "commentary" else "final_answer"
            yield from self._begin("message", "msg", role="assistant", phase=phase, content=[])
            self._message = delta.message
            yield from self._part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        item, at = self._current()
        logprobs = [logprob_of(token) for token in delta.logprobs] if self._logprobs else []
        item["content"][0]["text"] += delta.text
        item["content"][0]["logprobs"] += logprobs
        yield "response.output_text.delta", {**at, "content_index": 0, "delta": delta.text, "logprobs": logprobs}

    def _call(self, delta: api.ToolCallDelta) -> Iterator[Told]:
        if delta.id and delta.runs_on_server:
            kind, prefix, fields = begun(delta)
            yield from self._begin(kind, prefix, **fields)
            yield f"response.{kind}.in_progress", self._current()[1]
        elif delta.id:
            yield from self._begin("function_call", "fc", call_id=delta.id, name=delta.name, arguments="")
        if not delta.arguments:
            return
        item, at = self._current()
        if item["type"] == "function_call":
            item["arguments"] += delta.arguments
            yield "response.function_call_arguments.delta", {**at, "delta": delta.arguments}
        else:
            self._asked[at["item_id"]] = self._asked.get(at["item_id"], "") + delta.arguments
            yield from asked_more(item, at, delta.arguments)

    def _result(self, result: api.ToolResult) -> Iterator[Told]:
        item, at = self._current()
        yield from answered(item, at, self._asked.get(at["item_id"], ""), result, outputs=self._outputs)
        yield from self.close("failed" if result.failed else "completed")

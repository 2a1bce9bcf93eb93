"""Calls of tools that run on the server, as the items and events that OpenAI has for each. Pure.

`browser` is told as a web search, `python` as the code interpreter, everything else as a call of an MCP server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shoal.proto.v1 import inference_pb2 as api

Told = tuple[str, dict[str, Any]]
"""An event's type and its fields."""


def begun(call: api.ToolCallDelta) -> tuple[str, str, dict[str, Any]]:
    """The type of the item, the prefix of its id, and its own fields."""
    server, _, name = call.recipient.partition(".")
    match server:
        case "browser":
            return "web_search_call", "ws", {"action": {"type": "search", "query": ""}}
        case "python":
            return "code_interpreter_call", "ci", {"code": "", "container_id": "python", "outputs": None}
        case _:
            named = {"server_label": server, "name": name or call.name}
            return "mcp_call", "mcp", {**named, "arguments": "", "output": None, "error": None}


def asked_more(item: dict[str, Any], at: dict[str, Any], arguments: str) -> Iterator[Told]:
    """A piece of what the tool is asked."""
    match item["type"]:
        case "code_interpreter_call":
            item["code"] += arguments
            yield "response.code_interpreter_call_code.delta", {**at, "delta": arguments}
        case "mcp_call":
            item["arguments"] += arguments
            yield "response.mcp_call_arguments.delta", {**at, "delta": arguments}


def answered(
    item: dict[str, Any], at: dict[str, Any], asked: str, result: api.ToolResult, *, outputs: bool
) -> Iterator[Told]:
    """The tool's result. `asked` is everything it was asked; `outputs` includes what ran code printed."""
    match item["type"]:
        case "code_interpreter_call":
            yield "response.code_interpreter_call_code.done", {**at, "code": item["code"]}
            yield "response.code_interpreter_call.interpreting", at
            if outputs:
                item["outputs"] = [{"type": "logs", "logs": result.content}]
            yield "response.code_interpreter_call.completed", at
        case "web_search_call":
            item["action"] = _search(result.name.partition(".")[2], asked)
            yield "response.web_search_call.searching", at
            yield "response.web_search_call.completed", at
        case "mcp_call":
            yield "response.mcp_call_arguments.done", {**at, "arguments": item["arguments"]}
            if result.failed:
                said = [{"type": "text", "text": result.content}]
                item["error"] = {"type": "mcp_tool_execution_error", "content": said}
            else:
                item["output"] = result.content
            yield f"response.mcp_call.{'failed' if result.failed else 'completed'}", at


def _search(function: str, asked: str) -> dict[str, Any]:
    """What the browser did."""
    try:
        arguments = json.loads(asked)
    except ValueError:
        arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    match function:
        case "open":
            return {"type": "open_page", "url": str(arguments.get("id", ""))}
        case "find":
            return {"type": "find_in_page", "pattern": str(arguments.get("pattern", "")), "url": ""}
        case _:
            return {"type": "search", "query": str(arguments.get("query", ""))}

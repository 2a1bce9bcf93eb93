"""The input of a response, a text or items, as the messages of a turn. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.content import a_string, an_object, missing, one_of, text_of, wrong_type
from shoal.router.http.errors import ParameterError

_FUNCTIONS = "functions."
_GIVEN = {"input_text": "text", "text": "text"}
_SAID = {"output_text": "text", "refusal": "refusal", **_GIVEN}
_ROLES = {"system": api.ROLE_DEVELOPER, "developer": api.ROLE_DEVELOPER, "user": api.ROLE_USER}
_KINDS = (
    "message", "function_call", "function_call_output", "reasoning", "code_interpreter_call", "mcp_call",
    "web_search_call",
)  # fmt: skip


def items_of(given: object) -> list[dict[str, Any]]:
    """The input as items: a text is what the user says. Raises ParameterError."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        wrong_type("input", "a string or an array of items", given)
    items = []
    for index, value in enumerate(given):
        item = dict(an_object(value, f"input[{index}]"))
        item.setdefault("type", "message")
        items.append(item)
    return items


def read_items(items: Sequence[Mapping[str, Any]], *, continues: bool) -> tuple[list[api.Message], list[str]]:
    """The messages, and for each the place that it came from. Raises ParameterError.

    `continues`: calls that are answered here may have been made earlier in the conversation.
    """
    calls: dict[str, str] = {}
    read: list[api.Message] = []
    places: list[str] = []
    for index, item in enumerate(items):
        place = f"input[{index}]"
        for message in _read(item, place, calls, continues, beside_call=_call_follows(items[index + 1 :])):
            read.append(message)
            places.append(place)
    return read, places


def _call_follows(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the model goes on to call a tool in the same turn."""
    return next((i.get("type") for i in items if i.get("type") != "reasoning"), "") == "function_call"


def _read(
    item: Mapping[str, Any], place: str, calls: dict[str, str], continues: bool, beside_call: bool
) -> Iterator[api.Message]:
    said = api.ROLE_ASSISTANT
    match one_of(a_string(item, "type", place), _KINDS, f"{place}.type"):
        case "message":
            yield _message(item, place, beside_call)
        case "reasoning":
            if text := _reasoning(item, place):
                yield api.Message(role=said, content=text, channel="analysis")
        case "function_call":
            call_id = a_string(item, "call_id", place)
            calls[call_id] = name = _FUNCTIONS + a_string(item, "name", place)
            content = a_string(item, "arguments", place)
            yield api.Message(role=said, content=content, channel="commentary", recipient=name, call_id=call_id)
        case "function_call_output":
            call_id = a_string(item, "call_id", place)
            if call_id not in calls and not continues:
                raise ParameterError(f"No tool call found for function call output with call_id {call_id}.", "input")
            if "output" not in item:
                missing(f"{place}.output")
            content = text_of(item["output"], f"{place}.output", _SAID)
            yield api.Message(role=api.ROLE_TOOL, content=content, name=calls.get(call_id, ""), call_id=call_id)
        case "code_interpreter_call":
            logs = "".join(str(output.get("logs", "")) for output in item.get("outputs") or ())
            code = a_string(item, "code", place, "")
            yield api.Message(role=said, content=code, channel="analysis", recipient="python", content_type="code")
            yield api.Message(role=api.ROLE_TOOL, content=logs, channel="analysis", name="python")
        case "mcp_call":
            name = f"{a_string(item, 'server_label', place)}.{a_string(item, 'name', place)}"
            arguments, output = a_string(item, "arguments", place), a_string(item, "output", place, "")
            yield api.Message(role=said, content=arguments, channel="commentary", recipient=name)
            yield api.Message(role=api.ROLE_TOOL, content=output, name=name)
        case _:
            return  # a web search does not carry what it found


def _message(item: Mapping[str, Any], place: str, beside_call: bool) -> api.Message:
    role = one_of(a_string(item, "role", place), (*_ROLES, "assistant"), f"{place}.role")
    if "content" not in item:
        missing(f"{place}.content")
    if role != "assistant":
        content = text_of(item["content"], f"{place}.content", _GIVEN)
        return api.Message(role=_ROLES[role], content=content)
    phase = a_string(item, "phase", place, "commentary" if beside_call else "final_answer")
    channel = "commentary" if phase == "commentary" else "final"
    return api.Message(
        role=api.ROLE_ASSISTANT, content=text_of(item["content"], f"{place}.content", _SAID), channel=channel
    )


def _reasoning(item: Mapping[str, Any], place: str) -> str:
    """What was thought; the summary of it where there is nothing else."""
    if content := item.get("content"):
        return text_of(content, f"{place}.content", {"reasoning_text": "text", "text": "text"})
    return text_of(item.get("summary") or [], f"{place}.summary", {"summary_text": "text"})

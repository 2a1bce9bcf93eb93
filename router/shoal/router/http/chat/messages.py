"""The messages of a chat completion as the messages of a turn. Pure.

`system` and `developer` are both instructions (Harmony's system message is the server's own). One assistant message
may become several: its reasoning, its words, a message per tool call. Order in Harmony is the order of speech.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.content import a_string, an_object, missing, one_of, only, text_of, wrong_type
from shoal.router.http.errors import ParameterError

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT = {"text": "text"}
_SPOKEN = {"text": "text", "refusal": "refusal"}
_GIVEN = frozenset({"role", "content", "name"})
_SAID = _GIVEN | {"tool_calls", "refusal", "audio", "annotations", "function_call", "reasoning", "reasoning_content"}
_TOLD = frozenset({"role", "content", "tool_call_id", "name"})
_FUNCTIONS = "functions."


def read_messages(messages: Sequence[Any]) -> tuple[list[api.Message], list[str]]:
    """The messages, and for each the place that it came from. Raises ParameterError."""
    if not messages:
        raise ParameterError("Invalid 'messages': empty array. Expected at least one message.", "messages")
    read: list[api.Message] = []
    places: list[str] = []
    calls: dict[str, str] = {}
    for index, value in enumerate(messages):
        place = f"messages[{index}]"
        for message in _read(an_object(value, place), place, calls):
            read.append(message)
            places.append(place)
    return read, places


def _read(message: Any, place: str, calls: dict[str, str]) -> Iterator[api.Message]:
    """`calls` are the tool calls so far, names by id."""
    role = one_of(a_string(message, "role", place), _ROLES, f"{place}.role")
    match role:
        case "assistant":
            yield from _assistant(message, place, calls)
        case "tool":
            only(message, _TOLD, place)
            call_id = a_string(message, "tool_call_id", place)
            if call_id not in calls:
                raise ParameterError(
                    f"'tool_call_id' of '{call_id}' not found in 'tool_calls' of a previous message.",
                    f"{place}.tool_call_id",
                )
            content = text_of(message.get("content"), f"{place}.content", _TEXT)
            yield api.Message(role=api.ROLE_TOOL, content=content, name=calls[call_id], call_id=call_id)
        case _:
            only(message, _GIVEN, place)
            if "content" not in message:
                missing(f"{place}.content")
            content = text_of(message["content"], f"{place}.content", _TEXT)
            if not content and role != "user":
                return  # empty instructions instruct nobody
            yield api.Message(role=api.ROLE_USER if role == "user" else api.ROLE_DEVELOPER, content=content)


def _assistant(message: Any, place: str, calls: dict[str, str]) -> Iterator[api.Message]:
    only(message, _SAID, place)
    for refused in ("audio", "function_call"):
        if message.get(refused) is not None:
            raise ParameterError(
                f"'{place}.{refused}' is not supported.", f"{place}.{refused}", "unsupported_parameter"
            )
    asked = message.get("tool_calls")
    if asked is not None and not isinstance(asked, list):
        wrong_type(f"{place}.tool_calls", "an array", asked)
    thought = a_string(message, "reasoning_content", place, "") or a_string(message, "reasoning", place, "")
    if thought:
        yield api.Message(role=api.ROLE_ASSISTANT, content=thought, channel="analysis")
    content = message.get("content")
    if content is None:
        content = a_string(message, "refusal", place, "")
        if not content and not asked:
            missing(f"{place}.content")
    if said := text_of(content, f"{place}.content", _SPOKEN):
        # Words beside tool calls are a preamble: a message on the final channel would have ended the turn.
        yield api.Message(role=api.ROLE_ASSISTANT, content=said, channel="commentary" if asked else "final")
    elif not asked:
        yield api.Message(role=api.ROLE_ASSISTANT, channel="final")
    for index, value in enumerate(asked or ()):
        yield _call(an_object(value, f"{place}.tool_calls[{index}]"), f"{place}.tool_calls[{index}]", calls)


def _call(call: Any, place: str, calls: dict[str, str]) -> api.Message:
    one_of(a_string(call, "type", place, "function"), ("function",), f"{place}.type")
    call_id = a_string(call, "id", place)
    function = an_object(call.get("function"), f"{place}.function")
    name = _FUNCTIONS + a_string(function, "name", f"{place}.function")
    calls[call_id] = name
    arguments = a_string(function, "arguments", f"{place}.function")
    return api.Message(
        role=api.ROLE_ASSISTANT, content=arguments, channel="commentary", recipient=name, call_id=call_id
    )

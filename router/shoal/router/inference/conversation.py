"""Messages as clients send and read them, and as Harmony knows them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.errors import FieldError
from shoal.router.harmony.message import CHANNELS, ChatMessage, Effort, Role
from shoal.router.harmony.namespace import FUNCTIONS
from shoal.router.inference.resolve import checked_name

_ROLES: dict[int, Role] = {
    api.ROLE_SYSTEM: "system",
    api.ROLE_DEVELOPER: "developer",
    api.ROLE_USER: "user",
    api.ROLE_ASSISTANT: "assistant",
    api.ROLE_TOOL: "tool",
}
_NUMBERS = {role: number for number, role in _ROLES.items()}
_EFFORTS: dict[int, Effort] = {
    api.REASONING_EFFORT_UNSPECIFIED: "medium",
    api.REASONING_EFFORT_LOW: "low",
    api.REASONING_EFFORT_MEDIUM: "medium",
    api.REASONING_EFFORT_HIGH: "high",
}
_AUTHOR = re.compile(r"[\w.\-]{1,128}")


def effort_of(request: api.ChatRequest) -> Effort:
    """The effort asked for, or FieldError."""
    if request.reasoning_effort not in _EFFORTS:
        raise FieldError("reasoning_effort", f"has no meaning {request.reasoning_effort}")
    return _EFFORTS[request.reasoning_effort]


def calls_of(messages: Iterable[ChatMessage]) -> dict[str, str]:
    """The tool calls among the messages: recipients by the calls' names."""
    return {m.call_id: m.recipient for m in messages if m.role == "assistant" and m.call_id and m.recipient}


def read_messages(
    messages: Sequence[api.Message], *, first_turn: bool, calls: Mapping[str, str] | None = None
) -> list[ChatMessage]:
    """The messages of a turn, checked. A system message may only open a conversation. Raises FieldError.

    `calls` are the tool calls of earlier turns: a tool's message that names a call need not name the tool.
    """
    if not messages:
        raise FieldError("messages", "is empty")
    known, read = dict(calls or {}), []
    for index, message in enumerate(messages):
        read.append(_read(f"messages[{index}]", message, first_turn and index == 0, known))
        known |= calls_of(read[-1:])
    return read


def _read(field: str, message: api.Message, opens: bool, calls: Mapping[str, str]) -> ChatMessage:
    if message.role not in _ROLES:
        raise FieldError(f"{field}.role", f"must be system, developer, user, assistant or tool, not {message.role}")
    role = _ROLES[message.role]
    if role == "system" and not opens:
        raise FieldError(f"{field}.role", "may only be system in the first message of a conversation")
    if not message.content and role not in ("assistant", "tool"):
        raise FieldError(f"{field}.content", "is empty")
    channel = message.channel
    if channel and role not in ("assistant", "tool"):
        raise FieldError(f"{field}.channel", f"is not for a message of the {role}")
    if channel and channel not in CHANNELS:
        raise FieldError(f"{field}.channel", f"must be one of {', '.join(CHANNELS)}, not {channel!r}")
    if message.name and role != "tool":
        raise FieldError(f"{field}.name", f"is not for a message of the {role}")
    name = message.name
    if role == "tool" and not name:
        if message.call_id and message.call_id not in calls:
            raise FieldError(f"{field}.call_id", f"is {message.call_id!r}, and no such call was made before")
        if not message.call_id:
            raise FieldError(f"{field}.name", "must say which tool, such as functions.lookup")
        name = calls[message.call_id]
    if message.call_id and role != "tool" and not (role == "assistant" and message.recipient):
        raise FieldError(f"{field}.call_id", "is for tool calls and their results")
    checked_name(f"{field}.call_id", message.call_id)
    if message.recipient and role not in ("assistant", "tool"):
        raise FieldError(f"{field}.recipient", f"is not for a message of the {role}")
    if message.content_type and role != "assistant":
        raise FieldError(f"{field}.content_type", f"is not for a message of the {role}")
    named = {"name": message.name, "recipient": message.recipient, "content_type": message.content_type}
    for part, text in named.items():
        if text and _AUTHOR.fullmatch(text) is None:
            raise FieldError(f"{field}.{part}", "may have letters, digits, '.', '-' and '_', at most 128")
    if role == "tool":
        return ChatMessage(
            role,
            message.content,
            channel or "commentary",
            message.recipient or "assistant",
            name,
            call_id=message.call_id,
        )
    if role == "assistant":
        usual = "commentary" if message.recipient else "final"
        written = "json" if message.recipient.startswith(f"{FUNCTIONS}.") else ""
        return ChatMessage(
            role,
            message.content,
            channel or usual,
            message.recipient,
            call_id=message.call_id,
            content_type=message.content_type or written,
        )
    return ChatMessage(role, message.content)


def to_message(message: ChatMessage) -> api.Message:
    """As clients read it."""
    return api.Message(
        role=_NUMBERS[message.role],  # type: ignore[arg-type]  # the stub's enum numbers are a NewType of int
        content=message.content,
        channel=message.channel,
        name=message.name,
        recipient=message.recipient,
        call_id=message.call_id,
        content_type=message.content_type,
    )


def identity_of(messages: Iterable[ChatMessage]) -> str:
    """What the conversation's system message says about the model, empty when it has none."""
    return next((message.content for message in messages if message.role == "system"), "")


def spoken(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Everything but the system message, which is rendered from settings."""
    return [message for message in messages if message.role != "system"]

"""openai-harmony as an oracle: our plain data in, its rendering and parsing out, as text and control tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import openai_harmony as harmony

Pieces = list[Any]
"""Text as strings, control tokens as one-element lists of their names."""

EFFORTS = {
    "low": harmony.ReasoningEffort.LOW,
    "medium": harmony.ReasoningEffort.MEDIUM,
    "high": harmony.ReasoningEffort.HIGH,
}


class Oracle:
    """Needs TIKTOKEN_ENCODINGS_BASE in the environment: see `o200k.py`."""

    def __init__(self) -> None:
        self.encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)

    def rendered(self, conversation: dict[str, Any]) -> Pieces:
        """The prompt of a conversation."""
        return self.pieces(self.prompt_ids(conversation))

    def prompt_ids(self, conversation: dict[str, Any]) -> list[int]:
        """The same as ids of the published vocabulary. We decide what is left out: its own rule forgets too
        little."""
        left_out, functions = conversation["left_out"], conversation.get("functions", [])
        shown = [message for i, message in enumerate(conversation["messages"]) if i not in left_out]
        said = [_system(conversation["system"], conversation.get("builtin", []))]
        if functions:
            opens = bool(shown) and shown[0]["role"] == "developer"
            said.append(_developer(shown.pop(0)["content"] if opens else None, functions))
        whole = harmony.Conversation.from_messages([*said, *map(_message, shown)])
        keep_all = harmony.RenderConversationConfig(auto_drop_analysis=False)
        encoding = self.encoding
        ids: list[int] = encoding.render_conversation_for_completion(whole, harmony.Role.ASSISTANT, config=keep_all)
        return ids

    def parsed(self, written: str) -> tuple[Pieces, list[dict[str, str]]]:
        """The messages of a turn that was written with control tokens by their names."""
        ids = self.encoding.encode(written, allowed_special="all")
        said = self.encoding.parse_messages_from_completion_tokens(ids, harmony.Role.ASSISTANT)
        return self.pieces(ids), [
            {
                "channel": message.channel or "",
                "recipient": message.recipient or "",
                "content_type": (message.content_type or "").removeprefix("<|constrain|>"),
                "content": message.content[0].text,
            }
            for message in said
        ]

    def pieces(self, ids: Sequence[int]) -> Pieces:
        """Ids of the real vocabulary as text and names."""
        found: Pieces = []
        text: list[int] = []
        for token in [*ids, None]:
            if token is not None and not self.encoding.is_special_token(token):
                text.append(token)
                continue
            if text:
                found.append(self.encoding.decode(text))
                text = []
            if token is not None:
                found.append([self.encoding.decode([token])])
        return found


def _system(settings: dict[str, str], builtin: list[str]) -> harmony.Message:
    content = harmony.SystemContent.new().with_reasoning_effort(EFFORTS[settings.get("effort", "medium")])
    if "date" in settings:
        content = content.with_conversation_start_date(settings["date"])
    if "identity" in settings:
        content = content.with_model_identity(settings["identity"])
    if "browser" in builtin:
        content = content.with_browser_tool()
    if "python" in builtin:
        content = content.with_python_tool()
    return harmony.Message.from_role_and_content(harmony.Role.SYSTEM, content)


def _developer(instructions: str | None, functions: list[dict[str, Any]]) -> harmony.Message:
    content = harmony.DeveloperContent.new()
    if instructions is not None:
        content = content.with_instructions(instructions)
    if functions:
        tools = [
            harmony.ToolDescription.new(f["name"], f["description"], parameters=copy.deepcopy(f.get("parameters")))
            for f in functions
        ]
        content = content.with_function_tools(tools)
    return harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, content)


def _message(message: dict[str, str]) -> harmony.Message:
    if message["role"] == "developer":
        return _developer(message["content"], [])
    author = harmony.Author(role=harmony.Role(message["role"]), name=message.get("name"))
    made = harmony.Message.from_author_and_content(author, message["content"])
    if "channel" in message:
        made = made.with_channel(message["channel"])
    if "recipient" in message:
        made = made.with_recipient(message["recipient"])
    if "content_type" in message:
        made = made.with_content_type(f"<|constrain|>{message['content_type']}")
    return made

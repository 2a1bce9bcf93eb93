"""Messages and items in, one turn of Harmony's messages out."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.chat.messages import read_messages
from shoal.router.http.errors import ParameterError
from shoal.router.http.responses.items import items_of, read_items

CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Oslo?"}]},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "ask",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": ""},
]
ITEMS: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "Weather "}, {"type": "input_text", "text": "in Oslo?"}],
    },
    {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "ask"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": ""},
]


def test_both_apis_mean_the_same() -> None:
    """Reasoning, a preamble, a call and its result are one turn, whichever way they are written."""
    messages, places = read_messages(CALLED)
    by_items, _ = read_items(items_of(ITEMS), continues=False)

    assert messages == by_items
    assert [("", ""), ("analysis", ""), ("commentary", ""), ("commentary", "functions.weather"), ("", "")] == [
        (m.channel, m.recipient) for m in messages
    ]
    assert (messages[-1].name, messages[-1].call_id) == ("functions.weather", "c1")
    assert places == ["messages[0]", "messages[1]", "messages[1]", "messages[1]", "messages[2]"]


def test_an_answer_is_final() -> None:
    """Words beside no call are the answer."""
    messages, _ = read_messages([{"role": "assistant", "content": "Blue."}])
    assert [api.Message(role=api.ROLE_ASSISTANT, content="Blue.", channel="final")] == messages


def test_instructions_are_the_developers() -> None:
    """Harmony's system message is the server's own; empty instructions instruct nobody."""
    given = [{"role": "system", "content": "Be kind."}, {"role": "developer", "content": ""}]
    messages, _ = read_messages(given)
    assert [api.Message(role=api.ROLE_DEVELOPER, content="Be kind.")] == messages


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "fish"}, "input[0].type"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].type"),
        ({"type": "function_call", "call_id": "c"}, "input[0].name"),
        ({"type": "function_call_output", "call_id": "c", "output": "x"}, "input"),
        ({"role": "robot", "content": "x"}, "input[0].role"),
        ("x", "input[0]"),
    ],
)
def test_a_wrong_item_is_named(item: Any, param: str) -> None:
    """By its place."""
    with pytest.raises(ParameterError) as error:
        read_items(items_of([item]), continues=False)
    assert error.value.param == param


def test_the_outputs_of_earlier_calls_are_left_to_the_session() -> None:
    """Which knows what was called."""
    (message,), _ = read_items(items_of([ITEMS[-1]]), continues=True)
    assert (message.name, message.call_id) == ("", "c1")

"""A chat completion: the whole is what the pieces add up to, in the shapes of OpenAI's own types."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.chat.answer import ChatAnswer, Head

HEAD = Head("chatcmpl-1", "model", 1)
TEXT = st.text(max_size=5)
_USAGE = api.Usage(input_tokens=3, cached_tokens=1, output_tokens=5, reasoning_tokens=2)


@st.composite
def turns(draw: st.DrawFn, choice: int = 0) -> list[api.ChatResponse]:
    """The events of one turn: messages of any kind in any order, each in pieces."""
    events = [api.ChatResponse(choice=choice, started=api.Started(seed=1))]
    calls = 0
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["reasoning", "final", "commentary", "call", "server call", "warning"]))
        pieces = draw(st.lists(TEXT, max_size=3))
        if kind == "warning":
            events.append(api.ChatResponse(choice=choice, warning=api.Warning(code="c", message="m")))
        elif kind == "reasoning":
            events += [
                api.ChatResponse(choice=choice, reasoning=api.ReasoningDelta(text=p, message=number)) for p in pieces
            ]
        elif kind.endswith("call"):
            first = api.ToolCallDelta(
                index=calls, id=f"call_{calls}", name="f", recipient="functions.f", message=number,
                runs_on_server=kind == "server call",
            )  # fmt: skip
            rest = [api.ToolCallDelta(index=calls, arguments=piece, message=number) for piece in pieces]
            events += [api.ChatResponse(choice=choice, tool_call=delta) for delta in [first, *rest]]
            calls += 1
        else:
            events += [
                api.ChatResponse(choice=choice, text=api.TextDelta(text=p, channel=kind, message=number))
                for p in pieces
            ]
    ends = [api.FINISH_REASON_STOP, api.FINISH_REASON_LENGTH, api.FINISH_REASON_TOOL_CALL]
    done = api.Done(finish_reason=draw(st.sampled_from(ends)), usage=_USAGE)
    return [*events, api.ChatResponse(choice=choice, done=done)]


def added_up(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What a client makes of the chunks, per choice."""
    messages: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            message = messages.setdefault(
                choice["index"], {"content": "", "reasoning": "", "calls": [], "finish": None}
            )
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning_content", "")
            message["finish"] = choice["finish_reason"] or message["finish"]
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["calls"]):
                    message["calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                message["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return messages


@given(turns(0), turns(1), st.booleans())
def test_the_pieces_add_up_to_the_whole(
    one: list[api.ChatResponse], two: list[api.ChatResponse], formatted: bool
) -> None:
    """For every turn and every choice; and both are what OpenAI's types say."""
    answer = ChatAnswer(HEAD, formatted=formatted, logprobs=False)
    chunks = [chunk for event in [*one, *two] for chunk in answer.pieces(event)]
    whole = answer.whole()
    parts = added_up(chunks)

    for choice in whole["choices"]:
        message, part = choice["message"], parts[choice["index"]]
        assert (message["content"] or "") == part["content"]
        assert message.get("reasoning_content", "") == part["reasoning"]
        called = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())]
        assert called == part["calls"]
        assert choice["finish_reason"] == part["finish"]
    assert whole["usage"]["completion_tokens"] == 10
    assert whole["usage"]["prompt_tokens"] == 3
    ChatCompletion.model_validate(whole)
    for chunk in [*chunks, answer.usage_piece()]:
        ChatCompletionChunk.model_validate(chunk)


def test_an_answer_with_a_form_holds_nothing_else() -> None:
    """Words beside the answer would break its form, so they are told as reasoning."""
    answer = ChatAnswer(HEAD, formatted=True, logprobs=False)
    for channel, text, message in (("commentary", "Let me see.", 0), ("final", "{}", 1)):
        answer.pieces(api.ChatResponse(text=api.TextDelta(text=text, channel=channel, message=message)))
    answer.pieces(api.ChatResponse(done=api.Done(finish_reason=api.FINISH_REASON_STOP)))
    (choice,) = answer.whole()["choices"]

    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("{}", "Let me see.")


def test_what_runs_on_the_server_is_not_the_callers() -> None:
    """Calls are numbered as the caller sees them."""
    answer = ChatAnswer(HEAD, formatted=False, logprobs=False)
    deltas = [
        api.ToolCallDelta(index=0, id="a", name="python", recipient="python", runs_on_server=True),
        api.ToolCallDelta(index=0, arguments="1"),
        api.ToolCallDelta(index=1, id="b", name="f", recipient="functions.f"),
        api.ToolCallDelta(index=1, arguments="{}"),
    ]
    chunks = [chunk for delta in deltas for chunk in answer.pieces(api.ChatResponse(tool_call=delta))]

    assert [{"id": "b", "name": "f", "arguments": "{}"}] == added_up(chunks)[0]["calls"]

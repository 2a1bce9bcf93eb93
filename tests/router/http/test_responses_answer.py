"""A response: its events are numbered, of OpenAI's types, and add up to the object."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from shoal.proto.v1 import inference_pb2 as api
from shoal.router.http.body import parse
from shoal.router.http.errors import problem_of
from shoal.router.http.responses.answer import ResponseAnswer
from shoal.router.http.responses.request import ResponseBody, turn_of
from tests.router.http.test_chat_answer import turns

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
BODY = parse(ResponseBody, {"model": "model", "input": "Hello?"})


def answered(events: list[api.ChatResponse]) -> tuple[ResponseAnswer, list[dict[str, Any]]]:
    """The response of a turn, and all its events."""
    answer = ResponseAnswer(BODY, "resp_1", 1.0, stored=True)
    told = answer.begin()
    for event in events:
        told += answer.read(event)
    return answer, told + answer.end()


@given(turns())
def test_the_events_are_openais_and_add_up(events: list[api.ChatResponse]) -> None:
    """Whatever the turn: every item that was added is done, with the text of its deltas."""
    answer, told = answered(events)
    whole = answer.snapshot()
    Response.model_validate(whole)
    for event in told:
        EVENTS.validate_python(event)

    assert list(range(len(told))) == [event["sequence_number"] for event in told]
    assert whole == told[-1]["response"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == whole["output"]
    added = [event["item"]["id"] for event in told if event["type"] == "response.output_item.added"]
    assert added == [item["id"] for item in done]
    for item in done:
        deltas = "".join(e["delta"] for e in told if e["type"].endswith(".delta") and e["item_id"] == item["id"])
        match item["type"]:
            case "message" | "reasoning":
                assert deltas == item["content"][0]["text"]
            case "function_call" | "mcp_call":
                assert deltas == item["arguments"]


def test_a_failure_is_told_once() -> None:
    """However often it is asked for, the numbers do not move."""
    answer = ResponseAnswer(BODY, "resp_1", 1.0, stored=True)
    begun = answer.begin()
    problem = problem_of(ValueError("secret"))
    told = answer.fail(problem)

    assert told == answer.fail(problem)
    assert ["error", "response.failed"] == [event["type"] for event in told]
    assert [len(begun), len(begun) + 1] == [event["sequence_number"] for event in told]
    for event in told:
        EVENTS.validate_python(event)


def test_tools_on_the_server_have_items_of_their_own() -> None:
    """The browser is a web search, python the code interpreter, everything else an MCP call."""
    calls = [("browser.search", '{"query":"fish"}'), ("python", "1+1"), ("maps.route", "{}")]
    events = []
    for index, (recipient, asked) in enumerate(calls):
        name = recipient.partition(".")[2] or recipient
        first = api.ToolCallDelta(index=index, id=f"c{index}", name=name, recipient=recipient, runs_on_server=True)
        result = api.ToolResult(index=index, id=f"c{index}", name=recipient, content="found", failed=index == 2)
        events += [
            api.ChatResponse(tool_call=first),
            api.ChatResponse(tool_call=api.ToolCallDelta(index=index, arguments=asked)),
            api.ChatResponse(tool_result=result),
        ]
    events.append(api.ChatResponse(done=api.Done(finish_reason=api.FINISH_REASON_STOP)))
    answer, told = answered(events)
    search, code, route = answer.snapshot()["output"]
    for event in told:
        EVENTS.validate_python(event)

    assert search["action"] == {"type": "search", "query": "fish"}
    assert code["code"] == "1+1"
    assert (route["server_label"], route["name"], route["status"]) == ("maps", "route", "failed")
    assert route["error"]["content"][0]["text"] == "found"
    assert "response.mcp_call.failed" in [event["type"] for event in told]


def test_truncation_is_the_contexts_policy() -> None:
    """ "auto" leaves out the oldest turns, everything else refuses what is too long; the response says which."""
    for asked, policy in (
        ("auto", api.CONTEXT_POLICY_DROP_OLDEST),
        ("disabled", api.CONTEXT_POLICY_REFUSE),
        (None, api.CONTEXT_POLICY_REFUSE),
    ):
        body = ResponseBody.model_validate({"model": "m", "input": "x", "truncation": asked})
        assert turn_of(body, [api.Message()], "r").context_policy == policy
        told = ResponseAnswer(body, "resp_1", 0.0, stored=False).snapshot()
        assert told["truncation"] == (asked or "disabled")

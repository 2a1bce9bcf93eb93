"""The `openai` package against `/v1/responses`."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from shoal.router.fleet.scripted_worker import Hang, Say, doing
from tests.clients.stage import Stage, answer, call

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather somewhere.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_a_text_is_answered(stage: Stage, client: openai.OpenAI) -> None:
    """Reasoning and answer are items of their own; usage tells them apart."""
    stage.says(answer("Blue.", thought="sky"))
    response = client.responses.create(model=stage.model, input="What colour is the sky?", instructions="Be brief.")

    assert response.output_text == "Blue."
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    assert "# Instructions\n\nBe brief." in stage.prompt()


def test_the_events_add_up_to_the_response(stage: Stage, client: openai.OpenAI) -> None:
    """Numbered without gap, from created to completed, every delta in the item that it says."""
    stage.says(answer("Blue.", thought="sky"))
    events = list(client.responses.create(model=stage.model, input="?", stream=True))
    kinds = [event.type for event in events]

    assert list(range(len(events))) == [event.sequence_number for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-1] == "response.completed"
    assert "Blue." == "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert "sky" == "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert last.response.output == done


def test_the_stream_helper_understands_it(stage: Stage, client: openai.OpenAI) -> None:
    """`responses.stream` accumulates the same response."""
    stage.says(answer("Blue."))
    with client.responses.stream(model=stage.model, input="?") as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()

    assert final.output_text == "Blue."


def test_a_conversation_goes_on_from_its_last_response(stage: Stage, client: openai.OpenAI) -> None:
    """`previous_response_id` brings back what was said, in the ids it was said in."""
    stage.says(answer("Blue.", thought="sky"))
    first = client.responses.create(model=stage.model, input="Which colour?")
    stage.says(answer("No."))
    second = client.responses.create(model=stage.model, input="Always?", previous_response_id=first.id)

    assert second.previous_response_id == first.id
    said = "<|start|>user<|message|>Which colour?<|end|><|start|>assistant<|channel|>final<|message|>Blue.<|end|>"
    assert said + "<|start|>user<|message|>Always?<|end|><|start|>assistant" in stage.prompt()


def test_a_conversation_branches(stage: Stage, client: openai.OpenAI) -> None:
    """Two continuations of one response know nothing of each other; an older response can be continued, too."""
    stage.says(answer("One."))
    first = client.responses.create(model=stage.model, input="A")
    second = client.responses.create(model=stage.model, input="B", previous_response_id=first.id)
    client.responses.create(model=stage.model, input="C", previous_response_id=first.id)
    assert "B" not in [m.partition("<|end|>")[0] for m in stage.prompt().split("user<|message|>")]
    client.responses.create(model=stage.model, input="D", previous_response_id=second.id)

    users = [part.partition("<|end|>")[0] for part in stage.prompt().split("user<|message|>")[1:]]
    assert users == ["A", "B", "D"]


def test_instructions_are_of_one_response(stage: Stage, client: openai.OpenAI) -> None:
    """They are not carried over; the same ones again are not said twice."""
    stage.says(answer("x"))
    first = client.responses.create(model=stage.model, input="A", instructions="Be kind.")
    again = client.responses.create(
        model=stage.model, input="B", instructions="Be kind.", previous_response_id=first.id
    )
    assert stage.prompt().count("Be kind.") == 1
    client.responses.create(model=stage.model, input="C", instructions="Be rude.", previous_response_id=again.id)
    assert "Be kind." not in stage.prompt()
    assert stage.prompt().index("Be rude.") < stage.prompt().index("user<|message|>A")
    client.responses.create(model=stage.model, input="C", previous_response_id=first.id)
    assert "Be kind." not in stage.prompt()


def test_a_function_is_called_and_answered(stage: Stage, client: openai.OpenAI) -> None:
    """The output of a call finds it by its id, over `previous_response_id` or with the items sent back."""
    stage.says(call("weather", '{"city":"Oslo"}', thought="ask"), answer("Cold."))
    first = client.responses.create(model=stage.model, input="Weather in Oslo?", tools=[WEATHER])
    (wanted,) = [item for item in first.output if item.type == "function_call"]
    assert (wanted.name, json.loads(wanted.arguments)) == ("weather", {"city": "Oslo"})

    result: Any = {"type": "function_call_output", "call_id": wanted.call_id, "output": "-3 C"}
    second = client.responses.create(model=stage.model, input=[result], tools=[WEATHER], previous_response_id=first.id)
    assert second.output_text == "Cold."
    kept = stage.prompt()
    assert "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>-3 C<|end|>" in kept
    assert "analysis<|message|>ask" in kept

    history: Any = [{"role": "user", "content": "Weather in Oslo?"}, *(i.model_dump() for i in first.output), result]
    client.responses.create(model=stage.model, input=history, tools=[WEATHER], store=False)
    assert stage.prompt() == kept


def test_an_output_without_its_call_is_refused(stage: Stage, client: openai.OpenAI) -> None:
    """Nobody knows which function it is of."""
    lost: Any = [{"type": "function_call_output", "call_id": "call_x", "output": "1"}]
    with pytest.raises(openai.BadRequestError, match="call_x"):
        client.responses.create(model=stage.model, input=lost)


def test_parse_gives_an_object(stage: Stage, client: openai.OpenAI) -> None:
    """Pydantic in, the schema to the worker as a constraint, Pydantic out."""

    class City(BaseModel):
        name: str
        people: int

    stage.says(answer('{"name":"Oslo","people":700000}'))
    parsed = client.responses.parse(model=stage.model, input="A city", text_format=City)

    assert parsed.output_parsed == City(name="Oslo", people=700_000)
    assert stage.worker.submits[-1].HasField("constraint")


def test_responses_are_kept_and_deleted(stage: Stage, client: openai.OpenAI) -> None:
    """GET gives what create gave, the input can be listed, DELETE really deletes."""
    stage.says(answer("Blue."))
    made = client.responses.create(model=stage.model, input="Which?", metadata={"a": "b"})
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id)
    assert item.type == "message"
    client.responses.delete(made.id)

    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model=stage.model, input="?", previous_response_id=made.id)
    assert error.value.code == "previous_response_not_found"


def test_what_is_not_stored_is_gone(stage: Stage, client: openai.OpenAI) -> None:
    """Also when it continues from a stored one."""
    stage.says(answer("Blue."))
    stored = client.responses.create(model=stage.model, input="A")
    loose = client.responses.create(model=stage.model, input="B", store=False, previous_response_id=stored.id)

    assert "user<|message|>A<|end|>" in stage.prompt()
    assert loose.id != stored.id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(loose.id)


def test_an_answer_cut_short_is_incomplete(stage: Stage, client: openai.OpenAI) -> None:
    """Its status says so, and why."""
    stage.says(answer("A long answer."))
    response = client.responses.create(model=stage.model, input="?", max_output_tokens=20)

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_background_work_goes_on_without_its_client(stage: Stage, client: openai.OpenAI) -> None:
    """Queued at once, completed when read again."""
    stage.says(answer("Blue."), pause=0.002)
    response = client.responses.create(model=stage.model, input="?", background=True)
    assert response.status == "queued"
    give_up = time.monotonic() + 5
    while response.status in ("queued", "in_progress") and time.monotonic() < give_up:
        time.sleep(0.02)
        response = client.responses.retrieve(response.id)

    assert response.output_text == "Blue."


def test_background_work_can_be_followed(stage: Stage, client: openai.OpenAI) -> None:
    """As a stream that one may leave and come back to, at any place, also when all is over."""
    stage.says(answer("Blue as the deep sea.", thought="sky"), pause=0.002)
    stream = client.responses.create(model=stage.model, input="?", background=True, stream=True)
    heard = [event for event, _ in zip(stream, range(5), strict=False)]
    stream.close()
    created = heard[0]
    assert created.type == "response.created"
    name = created.response.id
    heard += client.responses.retrieve(name, stream=True, starting_after=heard[-1].sequence_number)

    assert [event.sequence_number for event in heard] == list(range(len(heard)))
    assert "Blue as the deep sea." == "".join(e.delta for e in heard if e.type == "response.output_text.delta")
    last = heard[-1]
    assert last.type == "response.completed"
    assert last.response == client.responses.retrieve(name)
    assert list(client.responses.retrieve(name, stream=True)) == heard


def test_cancelled_background_work_ends_its_stream(stage: Stage, client: openai.OpenAI) -> None:
    """Whoever follows it hears of the end."""
    stage.does(doing(Say((1,)), Hang()))
    stream = client.responses.create(model=stage.model, input="?", background=True, stream=True)
    events = iter(stream)
    created = next(events)
    assert created.type == "response.created"
    client.responses.cancel(created.response.id)
    *_, last = events

    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


def test_only_what_was_to_be_streamed_can_be(stage: Stage, client: openai.OpenAI) -> None:
    """The events of other responses are not kept."""
    stage.says(answer("Blue."))
    made = client.responses.create(model=stage.model, input="?")
    with pytest.raises(openai.BadRequestError, match="background") as error:
        client.responses.retrieve(made.id, stream=True)
    assert error.value.param == "stream"


def test_input_is_listed_page_by_page(stage: Stage, client: openai.OpenAI) -> None:
    """In either order; the client's own paging finds all of it."""
    stage.says(answer("x"))
    said: Any = [{"role": "user", "content": str(i)} for i in range(5)]
    made = client.responses.create(model=stage.model, input=said)
    first = client.responses.input_items.list(made.id, limit=2)
    assert first.has_more
    assert len(first.data) == 2

    def texts(order: Any) -> list[str]:
        pages = client.responses.input_items.list(made.id, limit=2, order=order)
        return [
            item.content[0].text for item in pages if item.type == "message" and item.content[0].type == "input_text"
        ]

    assert texts("asc") == ["0", "1", "2", "3", "4"]
    assert texts("desc") == ["4", "3", "2", "1", "0"]
    with pytest.raises(openai.BadRequestError, match="an integer from 1 to 100"):
        client.responses.input_items.list(made.id, limit=1000)


def test_items_can_be_referred_to(stage: Stage, client: openai.OpenAI) -> None:
    """By the names that they have in the output and in the list of the input."""
    stage.says(answer("Blue.", thought="sky"))
    made = client.responses.create(model=stage.model, input="Which colour?")
    (asked,) = client.responses.input_items.list(made.id)
    assert asked.id is not None
    names = [asked.id, *(item.id for item in made.output if item.type in ("message", "reasoning") and item.id)]
    again: Any = [*({"type": "item_reference", "id": name} for name in names), {"role": "user", "content": "Sure?"}]
    client.responses.create(model=stage.model, input=again)

    said = "user<|message|>Which colour?<|end|><|start|>assistant<|channel|>final<|message|>Blue.<|end|>"
    assert said + "<|start|>user<|message|>Sure?<|end|>" in stage.prompt()
    with pytest.raises(openai.NotFoundError, match="msg_nowhere"):
        client.responses.create(model=stage.model, input=[{"type": "item_reference", "id": "msg_nowhere"}])


def test_background_work_can_be_cancelled(stage: Stage, client: openai.OpenAI) -> None:
    """The worker is told; the response says cancelled."""
    stage.does(doing(Say((1,)), Hang()))
    response = client.responses.create(model=stage.model, input="?", background=True)
    give_up = time.monotonic() + 5
    while not stage.worker.running and time.monotonic() < give_up:
        time.sleep(0.01)
    cancelled = client.responses.cancel(response.id)

    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"
    while stage.worker.running and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not stage.worker.running


def test_code_runs_on_the_server(stage: Stage, client: openai.OpenAI) -> None:
    """The model calls `python`, reads the result in the same turn and answers."""
    python = "<|channel|>analysis to=python code<|message|>print(6*7)<|call|>"
    stage.says(python, answer("It is 42."))
    interpreter: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
    response = client.responses.create(
        model=stage.model, input="6*7?", tools=[interpreter], include=["code_interpreter_call.outputs"]
    )

    ran = response.output[0]
    assert ran.type == "code_interpreter_call"
    assert ran.code == "print(6*7)"
    assert ran.outputs is not None
    assert ran.outputs[0].type == "logs"
    assert ran.outputs[0].logs == "42\n"
    assert response.output_text == "It is 42."
    stage.says(python, answer("It is 42."))
    kinds = [e.type for e in client.responses.create(model=stage.model, input="?", tools=[interpreter], stream=True)]
    assert "response.code_interpreter_call.completed" in kinds


def test_a_tool_that_is_not_there_is_named(stage: Stage, client: openai.OpenAI) -> None:
    """400, and its name."""
    with pytest.raises(openai.BadRequestError, match="browser") as error:
        client.responses.create(model=stage.model, input="?", tools=[{"type": "web_search"}])
    assert error.value.param == "tools"

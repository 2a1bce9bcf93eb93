"""`langchain-openai`: chat, streaming, a tool-calling agent's loop, structured output. The words are scripted."""

from __future__ import annotations

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.clients.stage import Stage, answer, call


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


class City(BaseModel):
    """A city."""

    name: str
    people: int


def chat(stage: Stage, **settings: object) -> ChatOpenAI:
    """LangChain's model, pointed at the stage."""
    return ChatOpenAI(model=stage.model, base_url=stage.url, api_key=SecretStr("none"), max_retries=0, **settings)  # type: ignore[arg-type]  # by name


def test_chat(stage: Stage) -> None:
    """A message in, a message out, with usage."""
    stage.says(answer("Hello!", thought="greet"))
    said = chat(stage, temperature=0.2).invoke([("system", "Be kind."), ("human", "Hello?")])

    assert said.content == "Hello!"
    assert isinstance(said, AIMessage)
    assert said.usage_metadata is not None
    assert said.usage_metadata["output_token_details"]["reasoning"] == 5


def test_streaming(stage: Stage) -> None:
    """In pieces; the last one has the usage."""
    stage.says(answer("Hello!"))
    pieces = list(chat(stage, stream_usage=True).stream("Hello?"))

    assert "Hello!" == "".join(str(piece.content) for piece in pieces)
    assert len(pieces) > 3
    assert any(piece.usage_metadata for piece in pieces)


def test_an_agent_calls_its_tool(stage: Stage) -> None:
    """Model, tool, model: until there is no call any more."""
    stage.says(call("weather", '{"city":"Oslo"}'), answer("Take an umbrella."))
    model = chat(stage).bind_tools([weather])
    messages: list[BaseMessage] = [HumanMessage("Weather in Oslo?")]
    for _ in range(3):
        said = model.invoke(messages)
        messages.append(said)
        for asked in said.tool_calls:
            messages.append(ToolMessage(weather.invoke(asked["args"]), tool_call_id=asked["id"]))
        if not said.tool_calls:
            break

    assert messages[-1].content == "Take an umbrella."
    assert "functions.weather to=assistant<|channel|>commentary<|message|>Rain in Oslo.<|end|>" in stage.prompt()


def test_structured_output(stage: Stage) -> None:
    """By JSON Schema and by a function call."""
    stage.says(answer('{"name":"Oslo","people":700000}'))
    oslo = City(name="Oslo", people=700_000)
    assert chat(stage).with_structured_output(City, method="json_schema").invoke("A city") == oslo
    stage.says(call("City", '{"name":"Oslo","people":700000}'))
    assert chat(stage).with_structured_output(City, method="function_calling").invoke("A city") == oslo


def test_the_responses_api(stage: Stage) -> None:
    """LangChain over `/v1/responses`, with its own bookkeeping of ids."""
    stage.says(answer("Blue."), answer("Always."))
    model = chat(stage, use_responses_api=True, use_previous_response_id=True)
    first = model.invoke("Which colour?")
    second = model.invoke([HumanMessage("Which colour?"), first, HumanMessage("Always?")])

    assert first.text == "Blue."
    assert second.text == "Always."
    assert stage.prompt().count("Which colour?") == 1

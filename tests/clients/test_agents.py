"""The `openai-agents` SDK over both APIs. The model's words are scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

from tests.clients.stage import Stage, answer, call

set_tracing_disabled(True)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


class Advice(BaseModel):
    """What to do."""

    take: str


@pytest.fixture(params=["chat", "responses"])
async def model(stage: Stage, request: pytest.FixtureRequest) -> AsyncIterator[Model]:
    """The SDK's model over each API."""
    async with openai.AsyncOpenAI(base_url=stage.url, api_key="none", max_retries=0) as client:
        kind = OpenAIChatCompletionsModel if request.param == "chat" else OpenAIResponsesModel
        yield kind(stage.model, client)


async def test_an_agent_runs_its_loop(stage: Stage, model: Model) -> None:
    """It calls its function, hears the result, and answers."""
    stage.says(call("weather", '{"city":"Oslo"}', thought="ask"), answer("Take an umbrella."))
    agent = Agent(name="helper", instructions="Help.", model=model, tools=[weather])
    result = await Runner.run(agent, "Weather in Oslo?")

    assert result.final_output == "Take an umbrella."
    assert "Rain in Oslo." in stage.prompt()
    assert "# Instructions\n\nHelp." in stage.prompt()


async def test_an_agent_streams(stage: Stage, model: Model) -> None:
    """The same loop in pieces."""
    stage.says(call("weather", '{"city":"Oslo"}'), answer("Take an umbrella."))
    agent = Agent(name="helper", model=model, tools=[weather])
    result = Runner.run_streamed(agent, "Weather in Oslo?")
    kinds = {event.type async for event in result.stream_events()}

    assert result.final_output == "Take an umbrella."
    assert {"raw_response_event", "run_item_stream_event"} <= kinds


async def test_an_agent_gives_an_object(stage: Stage, model: Model) -> None:
    """`output_type` becomes the answer's schema."""
    stage.says(answer('{"take":"umbrella"}'))
    result = await Runner.run(Agent(name="helper", model=model, output_type=Advice), "What to take?")

    assert result.final_output == Advice(take="umbrella")
    assert stage.worker.submits[-1].HasField("constraint")

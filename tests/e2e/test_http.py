"""OpenAI's API through the whole cluster, with the clients that people use; the model's noise is held to its form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import openai
import pytest
from agents import Agent, OpenAIResponsesModel, Runner, set_tracing_disabled
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from shoal.router.tokenizer import Tokenizer
from tests.e2e.served import Client, Served

set_tracing_disabled(True)
BRIEF: Any = {"reasoning_budget": 4}


class Colour(StrEnum):
    """A few."""

    RED = "red"
    BLUE = "blue"


class Fish(BaseModel):
    """An answer that noise can end in time."""

    colour: Colour
    big: bool


@tool
def paint(colour: Colour, big: bool) -> str:
    """Paint a fish."""
    return f"painted {colour}, {big}"


@pytest.fixture
def url(client: Client) -> str:
    """Where the cluster serves OpenAI's API."""
    return f"http://{client.run.http}/v1"


@pytest.fixture
def model(client: Client) -> str:
    """What the cluster's model is called."""
    return Path(client.run.model).name


@pytest.fixture
def openai_client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_serve_tells_where_http_is(cluster: Served, client: Client) -> None:
    """It is served without being asked for, on loopback, and said so."""
    assert client.run.http.startswith("127.0.0.1:")
    assert f"HTTP      http://{client.run.http}/v1" in cluster.output()


def test_openai_streams_and_parses(openai_client: openai.OpenAI, model: str) -> None:
    """A seed says the same in pieces and whole; Pydantic in, Pydantic out."""
    asked: Any = {"model": model, "messages": [{"role": "user", "content": "Hello?"}], "seed": 7, "max_tokens": 12}
    whole = openai_client.chat.completions.create(**asked).choices[0].message
    pieces = list(openai_client.chat.completions.create(**asked, stream=True))
    deltas = [piece.choices[0].delta for piece in pieces]
    assert (whole.content or "") == "".join(delta.content or "" for delta in deltas)

    parsed = openai_client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "A fish?"}],
        response_format=Fish,
        seed=3,
        extra_body=BRIEF,
    )
    assert isinstance(parsed.choices[0].message.parsed, Fish)


def test_responses_are_kept_in_redis(openai_client: openai.OpenAI, model: str) -> None:
    """Read again, continued, and deleted for good."""
    first = openai_client.responses.create(model=model, input="A fish?", max_output_tokens=16, extra_body={"seed": 1})
    again = openai_client.responses.retrieve(first.id)
    second = openai_client.responses.create(
        model=model, input="And?", max_output_tokens=4, previous_response_id=first.id, extra_body={"seed": 2}
    )
    assert again.output == first.output
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    openai_client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(first.id)


def test_langchain_calls_a_tool(url: str, model: str, client: Client) -> None:
    """The tool that must be called is, with arguments that it takes."""
    message_token = Tokenizer.load(Path(client.run.model)).control["<|message|>"]
    brief = {**BRIEF, "logit_bias": {message_token: -100}}  # rather a call than words before it, which noise never ends
    chat = ChatOpenAI(model=model, base_url=url, api_key="none", seed=5, max_completion_tokens=300, extra_body=brief)  # type: ignore[arg-type]  # a str will do
    message = chat.bind_tools([paint], tool_choice="required", strict=True).invoke("Paint!")
    (call,) = message.tool_calls
    assert paint.invoke(call).content.startswith("painted ")
    assert isinstance(chat.with_structured_output(Fish).invoke("A fish?"), Fish)


async def test_an_agent_gives_an_object(url: str, model: str) -> None:
    """The agents SDK over `/v1/responses`."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        agent = Agent(name="painter", model=OpenAIResponsesModel(model, made), output_type=Fish)
        agent.model_settings.extra_body = {"reasoning_budget": 4, "seed": 3}
        result = await Runner.run(agent, "A fish?")
    assert isinstance(result.final_output, Fish)


def test_errors_have_openais_shape(openai_client: openai.OpenAI, model: str) -> None:
    """Status, type, parameter and code, from the far end of the cluster."""
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], temperature=-1)
    assert (error.value.param, json.loads(error.value.response.text)["error"]["type"]) == (
        "temperature",
        "invalid_request_error",
    )

"""Real clients, the real router and a real worker with a tiny random model: what it says is noise, held to its form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from shoal.cluster.checkpoint.make import make_checkpoint
from shoal.cluster.embedded_redis import EmbeddedRedis
from tests.clients.stage import Stage
from tests.workers.test_worker import Group


class Colour(StrEnum):
    """A few."""

    RED = "red"
    BLUE = "blue"


class Fish(BaseModel):
    """An answer that a random model can end in time: nothing in it is of any length."""

    model_config = ConfigDict(extra="forbid")
    colour: Colour
    big: bool


BRIEF: Any = {"reasoning_budget": 4}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> Iterator[Stage]:
    """A router in front of one worker that computes."""
    model: Path = make_checkpoint(tmp_path_factory.mktemp("real") / "tiny", "tiny")
    group = Group(model, 1)
    stage = Stage(model, redis_server.url, workers=(group.addresses[0],))
    yield stage
    stage.close()
    group.stop()


@pytest.fixture(scope="module")
def client(real: Stage) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=real.url, api_key="none", max_retries=0) as client:
        yield client


def test_noise_has_the_form_that_was_demanded(real: Stage, client: openai.OpenAI) -> None:
    """Reasoning, tools and a schema in the same request; over both APIs."""
    feed = {"name": "feed", "parameters": {"type": "object", "properties": {}}, "strict": True}
    tools: Any = [{"type": "function", "function": feed}]
    made = client.chat.completions.parse(
        model=real.model,
        messages=[{"role": "user", "content": "A fish?"}],
        response_format=Fish,
        tools=tools,
        tool_choice="none",
        seed=3,
        extra_body=BRIEF,
    )
    assert isinstance(made.choices[0].message.parsed, Fish)
    response = client.responses.parse(
        model=real.model, input="A fish?", text_format=Fish, reasoning={"effort": "none"}, extra_body={"seed": 4}
    )
    assert isinstance(response.output_parsed, Fish)


def test_noise_calls_the_tool_it_must(real: Stage, client: openai.OpenAI) -> None:
    """With arguments that satisfy the tool's schema; then the tool's result is read."""
    tool: Any = {"type": "function", "function": {"name": "paint", "parameters": Fish.model_json_schema()}}
    messages: Any = [{"role": "user", "content": "Paint!"}]
    made = client.chat.completions.create(
        model=real.model, messages=messages, tools=[tool], tool_choice="required", seed=5, extra_body=BRIEF
    )
    calls = made.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    Fish.model_validate(json.loads(calls[0].function.arguments))
    messages += [made.choices[0].message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in calls]
    again = client.chat.completions.create(model=real.model, messages=messages, tools=[tool], max_tokens=8, seed=6)
    assert again.choices[0].finish_reason in ("length", "stop", "tool_calls")


def test_a_seed_says_the_same_in_pieces_and_whole(real: Stage, client: openai.OpenAI) -> None:
    """And in a batch of several choices the first one is what it is alone."""
    asked: Any = {
        "model": real.model,
        "messages": [{"role": "user", "content": "Hello?"}],
        "seed": 7,
        "max_tokens": 24,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**asked)
    several = client.chat.completions.create(**asked, n=2)
    pieces = list(client.chat.completions.create(**asked, stream=True))

    assert several.choices[0].message == whole.choices[0].message
    assert (whole.choices[0].message.content or "") == "".join(p.choices[0].delta.content or "" for p in pieces)


def test_a_conversation_is_kept(real: Stage, client: openai.OpenAI) -> None:
    """A second turn reads the first from the prefix cache."""
    first = client.responses.create(
        model=real.model, input="A long question about fish, and about water?", max_output_tokens=40, temperature=0
    )
    second = client.responses.create(
        model=real.model, input="And?", max_output_tokens=4, temperature=0, previous_response_id=first.id
    )
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_noise_calls_several_tools_where_it_may(real: Stage, client: openai.OpenAI) -> None:
    """A model that would rather go on than end its turn: in parallel it calls again and again, each time as the schema
    wants it; without, the turn ends with its first call."""
    control = real.tokenizer.control
    reluctant = [control["<|return|>"], control["<|channel|>"], *real.tokenizer.encode("f")]
    tool: Any = {"type": "function", "function": {"name": "paint", "parameters": Fish.model_json_schema()}}
    asked: Any = {
        "model": real.model,
        "messages": [{"role": "user", "content": "Paint!"}],
        "tools": [tool],
        "tool_choice": "required",
        "logit_bias": {str(token): -100 for token in reluctant},
        "max_tokens": 250,
        "seed": 8,
    }
    several = client.chat.completions.create(**asked, parallel_tool_calls=True).choices[0]
    one = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    calls = several.message.tool_calls or []

    assert len(calls) > 1
    whole = calls if several.finish_reason == "tool_calls" else calls[:-1]  # the last one may be cut off
    for call in whole:
        assert call.type == "function"
        Fish.model_validate(json.loads(call.function.arguments))
    assert (one.finish_reason, len(one.message.tool_calls or [])) == ("tool_calls", 1)

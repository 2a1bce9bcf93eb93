"""Plain `grpcio` with generated stubs: what anybody gets from the .proto files."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import openai
import pytest

from shoal.proto.v1 import inference_pb2 as pb
from shoal.proto.v1 import inference_pb2_grpc
from tests.clients.stage import Stage, answer, call


@pytest.fixture
def inference(stage: Stage) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    """A blocking client."""
    with grpc.insecure_channel(stage.listening.address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def test_typed_events(stage: Stage, inference: inference_pb2_grpc.InferenceServiceStub) -> None:
    """Reasoning, text and a tool call arrive as what they are, and the end says what was used."""
    stage.says(call("weather", '{"city":"Oslo"}', thought="ask"))
    request = pb.ChatRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content="Weather?")],
        tools=[pb.Tool(name="weather", parameters='{"type":"object","properties":{"city":{"type":"string"}}}')],
    )
    events = list(inference.Chat(request, timeout=10))

    assert "ask" == "".join(event.reasoning.text for event in events)
    assert '{"city":"Oslo"}' == "".join(event.tool_call.arguments for event in events)
    assert pb.FINISH_REASON_TOOL_CALL == events[-1].done.finish_reason


def test_both_apis_render_the_same(
    stage: Stage, client: openai.OpenAI, inference: inference_pb2_grpc.InferenceServiceStub
) -> None:
    """What is said over either is the same to the model, and so are the models."""
    stage.says(answer("Blue."))
    request = pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, content="Which?")])
    events = list(inference.Chat(request, timeout=10))
    prompt = stage.prompt()
    made = client.chat.completions.create(model=stage.model, messages=[{"role": "user", "content": "Which?"}])

    assert made.choices[0].message.content == "".join(event.text.text for event in events)
    assert stage.prompt() == prompt
    assert [stage.model] == [model.id for model in inference.ListModels(pb.ListModelsRequest()).models]

"""Asking over the API, without a cluster."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from shoal.cluster.client import RouterClient
from shoal.cluster.nano.answer import Answer, Call
from shoal.cluster.nano.evaluate import ask, scores
from shoal.cluster.nano.mixture import EXAMS
from shoal.cluster.nano.questions import messages_of, questions, request
from shoal.cluster.nano.render import Desk
from shoal.cluster.nano.score import Score
from shoal.proto.v1 import inference_pb2 as pb
from shoal.router.harmony.render import SystemSettings
from shoal.router.inference.conversation import read_messages


class Parrot(RouterClient):
    """A router that always says the same pieces."""

    def __init__(self, *events: pb.ChatResponse) -> None:
        self.events = events

    def chat(self, request: pb.ChatRequest, timeout: float) -> Iterator[pb.ChatResponse]:
        yield from self.events


def test_pieces_become_one_answer() -> None:
    """Text and calls are put together; reasoning is not part of the answer."""
    router = Parrot(
        pb.ChatResponse(started=pb.Started()),
        pb.ChatResponse(reasoning=pb.ReasoningDelta(text="hm")),
        pb.ChatResponse(text=pb.TextDelta(text="One ")),
        pb.ChatResponse(text=pb.TextDelta(text="moment.")),
        pb.ChatResponse(tool_call=pb.ToolCallDelta(index=0, name="add", arguments='{"a":')),
        pb.ChatResponse(tool_call=pb.ToolCallDelta(index=0, arguments="1}")),
        pb.ChatResponse(done=pb.Done()),
    )
    example = questions(1, 0, ["told"])[0]
    assert Answer("One moment.", (Call("add", '{"a":1}'),)) == ask(router, example, 1.0)


def test_scores_are_by_task_and_effort() -> None:
    """One Score for each pair."""
    examples = questions(2, 0, ["told", "json"])
    answers = [Answer(example.reply[-1].content) for example in examples]
    answers[0] = Answer("?")
    found = scores(examples, answers)
    assert len(found) == 6
    assert Score(1, 2) == found["told", "low"]
    assert Score(2, 2) == found["json", "high"]


def test_a_request_renders_to_what_was_trained(desk: Desk) -> None:
    """The router's reading of the messages gives the prompt of the lesson; a call in history may lose one word."""
    rng = random.Random(1)
    settings = SystemSettings(date="2026-11-21", effort="low")
    for name, task in EXAMS.items():
        example = task(rng, "low")
        messages = read_messages(messages_of(example), first_turn=True)
        prompt = [token for part in desk.renderer.prompt(settings, messages) for token in part.ids]
        if name != "tool result":
            assert desk.prompt(example, settings) == prompt


def test_functions_are_declared_as_clients_declare_them() -> None:
    """All that the developer's words offer, with the schema of their arguments, and no longer in the words."""
    for example in questions(4, 0, ["tool call", "tool result", "no tool fits"]):
        asked = request(example)
        assert tuple(tool.name for tool in asked.tools) == example.tools
        assert "# Tools" not in asked.messages[0].content
        for tool in asked.tools:
            schema = json.loads(tool.parameters)
            assert f"type {tool.name} = (_: {{\n{schema['required'][0]}: " in example.messages[0].content

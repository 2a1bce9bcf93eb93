"""What the demonstration asks of shoal-nano, and what a right answer must hold."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console

from shoal.cluster.client import RouterClient
from shoal.cluster.errors import UnhealthyError
from shoal.cluster.terminal import Turn, show
from shoal.proto.v1 import inference_pb2 as pb

TIMEOUT = 120.0  # seconds for one answer
INSTRUCTIONS = "You are a helpful assistant."
WEATHER = pb.Tool(
    name="get_weather",
    description="Get the weather in a city.",
    parameters='{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
)
PERSON = '{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name","age"]}'


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn of the showcase."""

    title: str
    shown: str
    """What stands on the screen before the answer."""
    request: pb.ChatRequest
    is_right: Callable[[Turn], bool]


def turns() -> Iterator[Asked]:
    """Every turn in order. Those of one session must be asked one after the other."""
    said = f"demo-{secrets.token_hex(4)}"
    yield _asked("a session", "My name is Ada.", lambda turn: "Ada" in turn.answer, session=said)
    question = "What is 47 + 85?"
    yield _asked("arithmetic", question, lambda turn: "132" in turn.answer, session=said, effort="high")
    yield _asked("recall, from Redis", "What is my name?", lambda turn: "Ada" in turn.answer, session=said)

    tool = f"demo-{secrets.token_hex(4)}"
    call = _asked("a tool call", "What is the weather in Oslo?", _calls_for_oslo, session=tool, tools=True)
    yield call
    result = '{"degrees":7,"sky":"rainy"}'
    told = pb.Message(role=pb.ROLE_TOOL, name="functions.get_weather", content=result)
    request = pb.ChatRequest(
        messages=[told], session_id=tool, sampling=call.request.sampling, reasoning_effort=call.request.reasoning_effort
    )
    yield Asked("its result", result, request, lambda turn: "7" in turn.answer and "rainy" in turn.answer)

    sentence = "Mira is 34 years old."
    yield _asked("an answer after a schema", sentence, lambda turn: _parsed(turn.answer) == ("Mira", 34), schema=True)


def play(client: RouterClient, console: Console, report: Callable[[Turn, Console], None]) -> None:
    """Ask everything and print it. Raises UnhealthyError naming what was answered wrongly."""
    wrong = []
    for asked in turns():
        console.print(f"\n[dim]{asked.title}[/]\n[bold]› {asked.shown}[/]", highlight=False)
        turn = show(client.chat(asked.request, TIMEOUT), console)
        report(turn, console)
        if not asked.is_right(turn):
            wrong.append(asked.shown)
    if wrong:
        raise UnhealthyError(f"wrong answer to {wrong[0]!r}: these weights know better")
    console.print("\n[green]✓[/] every answer is right")


_EFFORTS = {"low": pb.REASONING_EFFORT_LOW, "medium": pb.REASONING_EFFORT_MEDIUM, "high": pb.REASONING_EFFORT_HIGH}


def _asked(
    title: str,
    text: str,
    is_right: Callable[[Turn], bool],
    session: str = "",
    effort: str = "medium",
    tools: bool = False,
    schema: bool = False,
) -> Asked:
    messages = [pb.Message(role=pb.ROLE_USER, content=text)]
    if tools or schema:
        messages.insert(0, pb.Message(role=pb.ROLE_DEVELOPER, content=INSTRUCTIONS))
    request = pb.ChatRequest(
        messages=messages,
        session_id=session,
        reasoning_effort=_EFFORTS[effort],
        sampling=pb.Sampling(temperature=0.0, seed=7),
        tools=[WEATHER] if tools else [],
    )
    if schema:
        kind = pb.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        request.response_format.CopyFrom(pb.ResponseFormat(kind=kind, schema=PERSON, name="person"))
    return Asked(title, text, request, is_right)


def _calls_for_oslo(turn: Turn) -> bool:
    return [(name, _object(arguments)) for name, arguments in turn.calls] == [("get_weather", {"city": "Oslo"})]


def _parsed(text: str) -> tuple[object, object]:
    found = _object(text)
    return found.get("name"), found.get("age")


def _object(text: str) -> dict[str, object]:
    """The JSON object, empty when it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

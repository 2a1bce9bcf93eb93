"""The examination: held-out questions of every task at every effort, as clients ask them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence

from shoal.cluster.nano.example import EFFORTS, Example, draw
from shoal.cluster.nano.mixture import EXAMS
from shoal.proto.v1 import inference_pb2 as pb

_ROLES = {"developer": pb.ROLE_DEVELOPER, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT, "tool": pb.ROLE_TOOL}
_EFFORTS = {"low": pb.REASONING_EFFORT_LOW, "medium": pb.REASONING_EFFORT_MEDIUM, "high": pb.REASONING_EFFORT_HIGH}
_DECLARED = re.compile(r"// (.*)\ntype (\w+) = \(_: \{\n((?:.*,\n)*)\}\) => any;")
MOST_TOKENS = 320
"""More than any right reply has."""


def questions(size: int, seed: int, tasks: Iterable[str] = ()) -> list[Example]:
    """`size` held-out examples of each task and effort, different from those that training looked at.

    The conversations of an effort differ from those of another. Raises KeyError naming an unknown task.
    """
    found = []
    for name in tasks or EXAMS:
        for effort in EFFORTS:
            rng = random.Random(f"examination {seed} {name} {effort}")
            found += [draw(EXAMS[name], rng, effort, "held-out") for _ in range(size)]
    return found


def messages_of(example: Example) -> list[pb.Message]:
    """What was said, with the functions as the model reads them: in the developer's words."""
    return [
        pb.Message(
            role=_ROLES[message.role],
            content=message.content,
            channel=message.channel,
            recipient=message.recipient,
            name=message.name,
        )
        for message in example.messages
    ]


def request(example: Example) -> pb.ChatRequest:
    """The greedy, stateless turn that asks the question, its functions given as such."""
    messages, tools = messages_of(example), []
    if example.tools:
        instructions, declared = messages[0].content.split("\n\n# Tools\n", 1)
        messages[0].content = instructions
        tools = [_tool(*found) for found in _DECLARED.findall(declared)]
    return pb.ChatRequest(
        messages=messages,
        tools=tools,
        reasoning_effort=_EFFORTS[example.effort],
        sampling=pb.Sampling(temperature=0.0, seed=1),
        limits=pb.Limits(max_tokens=MOST_TOKENS),
    )


def _tool(about: str, name: str, fields: str) -> pb.Tool:
    """A function that was declared in words, as a client declares it."""
    kinds = dict(line.removesuffix(",").split(": ") for line in fields.splitlines())
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in kinds.items()},
              "required": list(kinds)}  # fmt: skip
    return pb.Tool(name=name, description=about, parameters=json.dumps(schema))


def grouped(examples: Sequence[Example]) -> dict[tuple[str, str], list[int]]:
    """Positions of the questions of each task and effort, in order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault((example.task, example.effort), []).append(position)
    return groups

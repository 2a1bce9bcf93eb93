"""The examination: held-out questions of every task at every effort, as clients ask them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from shoal.cluster.nano.example import EFFORTS, Example, draw
from shoal.cluster.nano.mixture import EXAMS
from shoal.proto.v1 import inference_pb2 as pb

_ROLES = {"developer": pb.ROLE_DEVELOPER, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT, "tool": pb.ROLE_TOOL}
_EFFORTS = {"low": pb.REASONING_EFFORT_LOW, "medium": pb.REASONING_EFFORT_MEDIUM, "high": pb.REASONING_EFFORT_HIGH}
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


def request(example: Example) -> pb.ChatRequest:
    """The greedy, stateless turn that asks the question."""
    messages = [
        pb.Message(
            role=_ROLES[message.role],
            content=message.content,
            channel=message.channel,
            recipient=message.recipient,
            name=message.name,
        )
        for message in example.messages
    ]
    return pb.ChatRequest(
        messages=messages,
        reasoning_effort=_EFFORTS[example.effort],
        sampling=pb.Sampling(temperature=0.0, seed=1),
        limits=pb.Limits(max_tokens=MOST_TOKENS),
    )


def grouped(examples: Sequence[Example]) -> dict[tuple[str, str], list[int]]:
    """Positions of the questions of each task and effort, in order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault((example.task, example.effort), []).append(position)
    return groups

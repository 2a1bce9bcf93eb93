"""Asking a cluster the examination over its public API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from shoal.cluster.client import RouterClient
from shoal.cluster.nano.answer import Answer, Call, is_right
from shoal.cluster.nano.example import Example
from shoal.cluster.nano.questions import grouped, request
from shoal.cluster.nano.score import Score
from shoal.proto.v1 import inference_pb2 as pb

Scores = dict[tuple[str, str], Score]
"""By task and effort."""
Progress = Callable[[int, int], None]


def ask(client: RouterClient, example: Example, timeout: float) -> Answer:
    """One question. Raises CallError when the turn fails."""
    text: list[str] = []
    calls: dict[int, tuple[str, list[str]]] = {}
    for response in client.chat(request(example), timeout):
        match response.WhichOneof("event"):
            case "text":
                text.append(response.text.text)
            case "tool_call":
                piece: pb.ToolCallDelta = response.tool_call
                _, arguments = calls.setdefault(piece.index, (piece.name, []))
                arguments.append(piece.arguments)
            case _:
                pass
    return Answer("".join(text), tuple(Call(name, "".join(pieces)) for name, pieces in calls.values()))


def ask_all(
    target: str, examples: Sequence[Example], at_once: int, timeout: float, progress: Progress | None = None
) -> list[Answer]:
    """The answers in order, `at_once` questions in flight. Raises CallError for the first that fails."""
    client = RouterClient(target)
    answers = []
    try:
        with ThreadPoolExecutor(at_once, "eval") as pool:
            for answer in pool.map(lambda example: ask(client, example, timeout), examples):
                answers.append(answer)
                if progress is not None:
                    progress(len(answers), len(examples))
    finally:
        client.close()
    return answers


def scores(examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
    """How many were right, by task and effort."""
    return {
        key: Score(sum(is_right(examples[i], answers[i]) for i in positions), len(positions))
        for key, positions in grouped(examples).items()
    }

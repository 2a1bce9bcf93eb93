"""What the demonstration asks, and what it takes for an answer."""

from __future__ import annotations

import pytest
from rich.console import Console

from shoal.cluster import showcase
from shoal.cluster.errors import UnhealthyError
from shoal.cluster.terminal import Turn
from shoal.proto.v1 import inference_pb2 as pb

RIGHT = (
    Turn(answer="Nice to meet you, Ada."),
    Turn(answer="The answer is 132."),
    Turn(answer="Your name is Ada."),
    Turn(calls=[("get_weather", '{"city": "Oslo"}')]),
    Turn(answer="It is 7 degrees and rainy in Oslo."),
    Turn(answer='{"name":"Mira","age":34}'),
)


def test_right_answers_are_right_and_no_other_turns_are() -> None:
    """Each turn takes its own answer and none of the next turn's."""
    asked = list(showcase.turns())
    assert [each.is_right(turn) for each, turn in zip(asked, RIGHT, strict=True)] == [True] * 6
    shifted = (*RIGHT[1:], RIGHT[0])
    assert [each.is_right(turn) for each, turn in zip(asked, shifted, strict=True)] == [False] * 6


def test_a_wrong_answer_fails_the_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an error that names the question, after asking everything."""

    class Mute:
        asked = 0

        def chat(self, request: pb.ChatRequest, timeout: float) -> list[pb.ChatResponse]:
            self.asked += 1
            return []

    client = Mute()
    with pytest.raises(UnhealthyError, match="My name is Ada"):
        showcase.play(client, Console(quiet=True), lambda turn, console: None)  # type: ignore[arg-type]
    assert client.asked == len(RIGHT)

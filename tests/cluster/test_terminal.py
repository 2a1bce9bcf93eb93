"""A turn on a terminal."""

from __future__ import annotations

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shoal.cluster.errors import CallError
from shoal.cluster.terminal import Turn, printable, show
from shoal.proto.v1 import inference_pb2 as pb

EVENTS = [
    pb.ChatResponse(started=pb.Started(request_id="r", session_id="s", worker="g0-1")),
    pb.ChatResponse(reasoning=pb.ReasoningDelta(text="Let me ")),
    pb.ChatResponse(reasoning=pb.ReasoningDelta(text="think.")),
    pb.ChatResponse(text=pb.TextDelta(text="It is [bold]4[/] :smile:.")),
    pb.ChatResponse(done=pb.Done(finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(output_tokens=9))),
]


def shown(events: list[pb.ChatResponse], terminal: bool = False) -> tuple[Turn, str]:
    """The turn and what was printed."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system="standard" if terminal else None, width=200)
    return show(events, console), out.getvalue()


def test_reasoning_is_dimmed_and_the_answer_is_plain() -> None:
    """The eye sees which is which; the answer begins on its own line."""
    turn, printed = shown(EVENTS, terminal=True)
    assert printed == "\x1b[2mLet me \x1b[0m\x1b[2mthink.\x1b[0m\nIt is [bold]4[/] :smile:.\n"
    assert (turn.reasoning, turn.answer) == ("Let me think.", "It is [bold]4[/] :smile:.")


def test_markup_and_emoji_codes_in_answers_are_text() -> None:
    """The model's brackets are not ours."""
    assert shown(EVENTS)[1] == "Let me think.\nIt is [bold]4[/] :smile:.\n"


def test_figures_of_a_turn() -> None:
    """Who served it, how it ended, and a rate that is a number or says that it is none."""
    turn, _ = shown(EVENTS)
    assert turn.started is not None
    assert turn.done is not None
    assert (turn.started.worker, turn.done.usage.output_tokens) == ("g0-1", 9)
    assert turn.first_token is not None
    assert math.isnan(Turn().tokens_per_second)


def test_an_error_in_the_stream_passes_through() -> None:
    """What was already printed ends with a line end."""
    out = io.StringIO()

    def broken() -> object:
        yield EVENTS[3]
        raise CallError("UNAVAILABLE: gone")

    with pytest.raises(CallError):
        show(broken(), Console(file=out, width=200))  # type: ignore[arg-type]  # a generator of responses
    assert out.getvalue().endswith(":smile:.\n")


@given(st.text())
def test_nothing_a_model_says_drives_the_terminal(text: str) -> None:
    """No escape, bell or other control character is left, whatever the text; line ends and tabs are."""
    safe = printable(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", safe)
    assert len(text) == len(safe)

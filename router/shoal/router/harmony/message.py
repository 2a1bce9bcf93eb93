"""What is said in a conversation, and what it looks like as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]
Effort = Literal["low", "medium", "high"]

CHANNELS = ("analysis", "commentary", "final")
"""Reasoning; tool calls and words about them; the answer."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The ids of one message. `ids[first:last]` were sampled by the model, the others were given."""

    ids: tuple[int, ...]
    first: int = 0
    last: int = 0
    lasting: bool = False
    """Later prompts are likely to begin with everything up to its end: workers keep what they need from there."""

    def __post_init__(self) -> None:
        assert 0 <= self.first <= self.last <= len(self.ids), (
            f"generated span {self.first}:{self.last} of {len(self.ids)}"
        )


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. Empty strings stand for what is absent."""

    role: Role
    content: str
    channel: str = ""
    recipient: str = ""
    name: str = ""  # of a tool, such as "functions.lookup"
    call_id: str = ""  # of a tool call, and in a tool's message the call that it answers; the model does not see it
    content_type: str = ""  # such as "json"
    rendered: Rendered | None = None  # ids from an earlier rendering, used instead of a new one


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive prompt tokens of one origin, none of them behind the end of a lasting message."""

    ids: tuple[int, ...]
    generated: bool


def visible(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages that the model sees again: all but the reasoning before the user's last word.

    So within a tool loop the reasoning stays, however many calls it takes; it goes when the user speaks again.

    >>> thought, answer = ChatMessage("assistant", "hm", "analysis"), ChatMessage("assistant", "4", "final")
    >>> question = ChatMessage("user", "?")
    >>> visible([question, thought, answer, question, thought]) == [question, answer, question, thought]
    True
    """
    over = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    return [
        message
        for index, message in enumerate(messages)
        if index > over or not (message.role == "assistant" and message.channel == "analysis")
    ]


def runs_of(pieces: Iterable[Rendered]) -> tuple[Run, ...]:
    """The pieces one after another, cut where the origin changes and where a lasting message ends.

    >>> runs_of([Rendered((1, 2)), Rendered((3, 4, 5), 1, 3), Rendered((6,))])
    (Run(ids=(1, 2, 3), generated=False), Run(ids=(4, 5), generated=True), Run(ids=(6,), generated=False))
    >>> [run.ids for run in runs_of([Rendered((1,)), Rendered((2,), lasting=True), Rendered((3,))])]
    [(1, 2), (3,)]
    """
    runs: list[tuple[list[int], bool]] = []
    cut = True
    for piece in pieces:
        spans = ((0, piece.first, False), (piece.first, piece.last, True), (piece.last, len(piece.ids), False))
        for begin, stop, generated in spans:
            if begin == stop:
                continue
            if cut or runs[-1][1] != generated:
                runs.append(([], generated))
            runs[-1][0].extend(piece.ids[begin:stop])
            cut = False
        cut = cut or piece.lasting
    return tuple(Run(tuple(ids), generated) for ids, generated in runs)

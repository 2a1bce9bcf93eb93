"""A turn of conversation on a terminal: reasoning dimmed, the answer plain, control characters taken out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console

from shoal.proto.v1 import inference_pb2 as pb

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """What a model said without control characters, which could move the cursor or worse.

    >>> printable("a\\x1b[2Jb\\tc\\n")
    'a�[2Jb\\tc\\n'
    """
    return _CONTROL.sub("�", text)


@dataclass(slots=True)
class Turn:
    """What one turn gave. Times are seconds since it was asked for."""

    answer: str = ""
    reasoning: str = ""
    started: pb.Started | None = None
    done: pb.Done | None = None
    warnings: list[str] = field(default_factory=list)
    """Codes of what was odd and was repaired."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Functions that were called, with the text of their arguments."""
    first_token: float | None = None
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, nan when there are too few."""
        tokens = self.done.usage.output_tokens if self.done is not None else 0
        if tokens < 2 or self.first_token is None or self.seconds <= self.first_token:
            return float("nan")
        return (tokens - 1) / (self.seconds - self.first_token)


def show(events: Iterable[pb.ChatResponse], console: Console, warnings: bool = True) -> Turn:
    """Print a turn as it comes, its warnings too unless told not to. CallError passes through, after a line end."""
    turn = Turn()
    begin = time.monotonic()
    try:
        for event in events:
            match event.WhichOneof("event"):
                case "started":
                    turn.started = event.started
                    continue
                case "reasoning":
                    turn.reasoning += event.reasoning.text
                    _write(console, event.reasoning.text, style="dim")
                case "text":
                    if turn.reasoning and not turn.answer:
                        console.print()
                    turn.answer += event.text.text
                    _write(console, event.text.text)
                case "tool_call":
                    piece = event.tool_call
                    if piece.name:
                        if turn.reasoning or turn.answer or turn.calls:
                            console.print()
                        turn.calls.append((piece.name, ""))
                    name, arguments = turn.calls[-1]
                    turn.calls[-1] = (name, arguments + piece.arguments)
                    _write(console, f"{piece.name} {piece.arguments}" if piece.name else piece.arguments, style="cyan")
                case "warning":
                    turn.warnings.append(event.warning.code)
                    if warnings:
                        console.print(f"\n[{event.warning.code}] {event.warning.message}", style="yellow", markup=False)
                    continue
                case "done":
                    turn.done = event.done
                case "error":
                    console.print(f"\n{event.error.message}", style="red", markup=False)
            if turn.first_token is None:
                turn.first_token = time.monotonic() - begin
    finally:
        turn.seconds = time.monotonic() - begin
        console.print()
    return turn


def _write(console: Console, text: str, style: str | None = None) -> None:
    console.print(printable(text), end="", style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

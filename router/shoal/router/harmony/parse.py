"""What a model writes, read token by token. Total: any sequence of ids is read, odd ones are repaired and reported.

    parser.push(id) -> events that this token completed          parser.finish() -> events of what was cut off

The events are a function of the token sequence alone. Three states, named by what is being read:

    HEADER   ── <|message|> ──▶ CONTENT ── <|end|>, <|return|>, <|call|> ──▶ OUTSIDE ── <|start|> ──▶ HEADER

Repairs (codes of `Repaired`): `missing_end` a message began inside another; `missing_start` a header without
`<|start|>`; `missing_header` text without a header, read as an answer; `missing_channel`, `unknown_channel`,
`malformed_header`, `abandoned_header`, `truncated_header`; `foreign_author` the model spoke as somebody else;
`stray_token` a control token out of place, dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import NamedTuple

from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.header import LONGEST, Header, HeaderText, may_become_header, read_header
from shoal.router.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Opened:
    """A message begins."""

    index: int
    header: Header


class Delta(NamedTuple):
    """Text of the message that is open; whole characters. A tuple, because most tokens make one."""

    header: Header
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A message is complete. `content_ids` are its ids without header and end; `end` is the token that ended it."""

    header: Header
    text: str
    content_ids: tuple[int, ...]
    end: int | None  # None: cut off
    header_ids: tuple[int, ...] = ()
    """The header as it was written, from after the previous message's end to `<|message|>`; empty when it needed
    repair."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """Something was odd; reading went on."""

    code: str
    message: str


Event = Opened | Delta | Closed | Repaired


class _State(Enum):
    HEADER = auto()
    CONTENT = auto()
    OUTSIDE = auto()


@dataclass(slots=True)
class _Unfinished:
    """A header being read: its ids, and their text in the part that each belongs to."""

    author_given: bool  # the prompt, or a repair, already said that the assistant speaks
    decoder: Detokenizer
    ids: list[int] = field(default_factory=list)
    author: str = ""
    channel: str | None = None
    constrain: str | None = None

    def add(self, token: int) -> None:
        self.ids.append(token)
        piece = self.decoder.push(token)
        if self.constrain is not None:
            self.constrain += piece
        elif self.channel is not None:
            self.channel += piece
        else:
            self.author += piece

    def is_content(self) -> bool:
        """Whether this cannot be a header any more."""
        if self.channel is None:
            return not may_become_header(self.author, self.author_given)
        return len(self.channel) + len(self.constrain or "") > LONGEST or len(self.ids) > LONGEST

    def read(self) -> tuple[Header, list[str]]:
        author = f"assistant {self.author}" if self.author_given else self.author
        return read_header(HeaderText(author, self.channel, self.constrain))


class Parser:
    """Reads one turn of the model, which begins right after `<|start|>assistant`."""

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._controls = frozenset(tokenizer.control.values())
        self._ends = frozenset((control.end, control.return_, control.call, control.endoftext))
        self._state = _State.HEADER
        self._unfinished = _Unfinished(True, Detokenizer(tokenizer))
        self._messages = 0
        self._header = Header("assistant", "final")
        self._written: list[int] = []  # since the previous message's end, and whether all of that was in order
        self._sound = True
        self._header_ids: tuple[int, ...] = ()
        self._content: list[int] = []
        self._text: list[str] = []
        self._detokenizer = Detokenizer(tokenizer)

    def push(self, token: int) -> list[Event]:
        """Read one token."""
        is_control = token in self._controls
        if self._state is _State.CONTENT:
            return self._control_in_content(token) if is_control else self._add(token)
        self._written.append(token)
        if self._state is _State.HEADER:
            return self._control_in_header(token) if is_control else self._text_in_header(token)
        return self._control_outside(token) if is_control else self._text_outside(token)

    @property
    def open_ids(self) -> int:
        """Content ids of the message that is open; 0 outside one."""
        return len(self._content) if self._state is _State.CONTENT else 0

    def finish(self) -> list[Event]:
        """Nothing follows: close what is open."""
        if self._state is _State.CONTENT:
            return self._close(None)
        begun = self._state is _State.HEADER and (self._unfinished.ids or self._unfinished.channel is not None)
        self._state = _State.OUTSIDE
        if not begun:
            return []
        repaired = self._repaired("truncated_header", "the output ended inside a header")
        return [repaired, *self._open(), *self._close(None)]

    def _text_in_header(self, token: int) -> list[Event]:
        header = self._unfinished
        header.add(token)
        if not header.is_content():
            return []
        # What was taken for a header is an answer whose header is missing: give it back as text.
        self._unfinished = _Unfinished(True, Detokenizer(self._tokenizer), channel="final")
        repaired = self._repaired("missing_header", "text without a header, read as an answer")
        events: list[Event] = [repaired, *self._open()]
        for held in header.ids:
            events += self._add(held)
        return events

    def _control_in_header(self, token: int) -> list[Event]:
        control, header = self._control, self._unfinished
        if token == control.message:
            return self._open()
        if token == control.channel:
            again = header.channel is not None
            header.channel, header.constrain = "", None
            return [self._repaired("malformed_header", "two channels in one header; the second holds")] if again else []
        if token == control.constrain:
            header.constrain = ""
            return []
        if token == control.start:
            empty = not header.ids and header.channel is None
            self._begin_header(author_given=False)
            repaired = self._repaired("abandoned_header", "a header was begun twice")
            return [] if empty else [repaired]
        if token in self._ends:
            repaired = self._repaired("malformed_header", "a message without content")
            return [repaired, *self._open(), *self._close(token)]
        return [self._stray(token)]

    def _control_in_content(self, token: int) -> list[Event]:
        if token in self._ends:
            return self._close(token)
        if token in (self._control.start, self._control.channel):
            events = [*self._close(None), self._repaired("missing_end", "a message began inside another")]
            self._begin_header(author_given=token == self._control.channel)
            return events if token == self._control.start else [*events, *self._control_in_header(token)]
        return [self._stray(token)]

    def _text_outside(self, token: int) -> list[Event]:
        self._begin_header(author_given=False)
        return [self._repaired("missing_start", "text between messages"), *self._text_in_header(token)]

    def _control_outside(self, token: int) -> list[Event]:
        if token == self._control.start:
            self._begin_header(author_given=False)
            return []
        if token in (self._control.channel, self._control.message):
            self._begin_header(author_given=True)
            return [self._repaired("missing_start", "a header without its beginning"), *self._control_in_header(token)]
        return [self._stray(token)]

    def _begin_header(self, author_given: bool) -> None:
        self._state = _State.HEADER
        self._unfinished = _Unfinished(author_given, Detokenizer(self._tokenizer))

    def _open(self) -> list[Event]:
        header, repairs = self._unfinished.read()
        if header.role != "assistant":
            repairs.append("foreign_author")
        self._header = replace(header, role="assistant")
        self._header_ids = tuple(self._written) if self._sound and not repairs else ()
        self._state = _State.CONTENT
        self._content, self._text = [], []
        self._messages += 1
        reported: list[Event] = [Repaired(code, f"read as {self._header.channel}") for code in repairs]
        return [*reported, Opened(self._messages - 1, self._header)]

    def _add(self, token: int) -> list[Event]:
        self._content.append(token)
        return self._delta(self._detokenizer.push(token))

    def _delta(self, text: str) -> list[Event]:
        if not text:
            return []
        self._text.append(text)
        return [Delta(self._header, text)]

    def _close(self, end: int | None) -> list[Event]:
        events = self._delta(self._detokenizer.finish())
        self._state = _State.OUTSIDE
        self._written, self._sound = [], True
        return [*events, Closed(self._header, "".join(self._text), tuple(self._content), end, self._header_ids)]

    def _stray(self, token: int) -> Repaired:
        return self._repaired("stray_token", f"the control token {token} was out of place and is left out")

    def _repaired(self, code: str, message: str) -> Repaired:
        """What is reported; the header that is being written is not sound."""
        self._sound = False
        return Repaired(code, message)

"""A conversation as the token ids that the model was trained on.

    <|start|>system<|message|>…<|end|><|start|>user<|message|>hi<|end|><|start|>assistant

Control tokens are placed by their ids; everything a person or the model said is encoded as text, so no message can
end itself or start another one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage, Rendered, visible
from shoal.router.harmony.namespace import Function
from shoal.router.harmony.preface import (
    DEFAULT_CUTOFF,
    DEFAULT_IDENTITY,
    AnswerFormat,
    DeveloperSettings,
    SystemSettings,
)
from shoal.router.tokenizer import Tokenizer

__all__ = ["DEFAULT_CUTOFF", "DEFAULT_IDENTITY", "PLAIN_TYPES", "Renderer", "SystemSettings"]

PLAIN_TYPES = ("code",)
"""Content types that stand in a header as words; the others follow `<|constrain|>`."""


class Renderer:
    """Renders with one vocabulary. Stateless beyond it and safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._preface = functools.lru_cache(maxsize=64)(self._message)  # long, and the same in many requests

    @property
    def opening(self) -> tuple[int, ...]:
        """What every prompt ends with: the model goes on with a channel."""
        return (self._control.start, *self._tokenizer.encode("assistant"))

    def system(self, settings: SystemSettings) -> Rendered:
        """The system message."""
        return self._preface("system", (), settings.text())

    def developer(self, settings: DeveloperSettings) -> Rendered:
        """The developer message."""
        return self._preface("developer", (), settings.text())

    def message(self, message: ChatMessage) -> Rendered:
        """One message as it is kept in history, ending in `<|end|>` (a tool call: in `<|call|>`).

        A message that carries its ids already is not rendered again.
        """
        if message.rendered is not None:
            return message.rendered
        content = message.content
        if message.role == "developer":
            content = DeveloperSettings(content).text()
        author = message.name if message.role == "tool" and message.name else message.role
        return self._message(author, self._header_tail(message), content, self._last(message))

    def least_tokens(self, message: ChatMessage) -> int:
        """At least so many ids a message has: known at once."""
        return self._tokenizer.least_tokens(message.content)

    def generated(self, message: ChatMessage, content_ids: Sequence[int], header_ids: Sequence[int] = ()) -> Rendered:
        """A message that the model just wrote: its own content ids between its header and a well-formed end.

        `header_ids` is the header as the model wrote it, where that is well-formed, so that the next prompt begins
        with what was computed already; empty: written anew.
        """
        given: tuple[int, ...] = (self._control.start, *self._tokenizer.encode(message.role))
        head = tuple(header_ids) or (*self._header_tail(message), self._control.message)
        if head[0] == self._control.start:
            given = ()  # not the turn's first message: the model wrote its beginning too
        ids = (*given, *head, *content_ids, self._last(message))
        return Rendered(ids, len(given), len(ids))

    def prompt(
        self,
        settings: SystemSettings,
        messages: Sequence[ChatMessage],
        functions: Sequence[Function] = (),
        formats: Sequence[AnswerFormat] = (),
    ) -> list[Rendered]:
        """Everything the model reads before it answers.

        Functions and answer formats stand in the developer message that opens the conversation; it is made when there
        is none. The same functions and instructions give the same ids, turn after turn.
        """
        settings = replace(settings, calls_functions=settings.calls_functions or bool(functions))
        pieces = [replace(self.system(settings), lasting=True)]
        rest = list(messages)
        if functions or formats:
            opens = bool(rest) and rest[0].role == "developer"
            instructions = rest.pop(0).content if opens else ""
            developer = DeveloperSettings(instructions, tuple(functions), tuple(formats))
            pieces.append(replace(self.developer(developer), lasting=True))
        pieces += (replace(self.message(message), lasting=_lasts(message)) for message in visible(rest))
        return [*pieces, Rendered(self.opening)]

    def _header_tail(self, message: ChatMessage) -> tuple[int, ...]:
        """What stands between the author and `<|message|>`."""
        encode, control = self._tokenizer.encode, self._control
        ids = encode(f" to={message.recipient}") if message.recipient else []
        if message.channel:
            ids += [control.channel, *encode(message.channel)]
        if message.content_type in PLAIN_TYPES:
            ids += encode(f" {message.content_type}")
        elif message.content_type:
            ids += [*encode(" "), control.constrain, *encode(message.content_type)]
        return tuple(ids)

    def _last(self, message: ChatMessage) -> int:
        return self._control.call if message.role == "assistant" and message.recipient else self._control.end

    def _message(self, author: str, tail: tuple[int, ...], content: str, last: int | None = None) -> Rendered:
        encode, control = self._tokenizer.encode, self._control
        head = (control.start, *encode(author), *tail, control.message)
        return Rendered((*head, *encode(content), control.end if last is None else last))


def _lasts(message: ChatMessage) -> bool:
    """Instructions are shared by conversations, and a conversation goes on from its answers."""
    return message.role == "developer" or (message.role == "assistant" and message.channel == "final")

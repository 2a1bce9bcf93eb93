"""A conversation as the token ids that the model was trained on.

    <|start|>system<|message|>…<|end|><|start|>user<|message|>hi<|end|><|start|>assistant

Control tokens are placed by their ids; everything a person or the model said is encoded as text, so no message can
end itself or start another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage, Effort, Rendered, visible
from shoal.router.tokenizer import Tokenizer

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_CUTOFF = "2024-06"


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """What the system message says. `date` is the day the conversation began, YYYY-MM-DD; empty: not told."""

    date: str = ""
    effort: Effort = "medium"
    identity: str = DEFAULT_IDENTITY
    knowledge_cutoff: str = DEFAULT_CUTOFF

    def text(self) -> str:
        """The content of the system message."""
        about = [self.identity, f"Knowledge cutoff: {self.knowledge_cutoff}"]
        if self.date:
            about.append(f"Current date: {self.date}")
        channels = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
        return "\n\n".join(["\n".join(about), f"Reasoning: {self.effort}", channels])


class Renderer:
    """Renders with one vocabulary. Stateless beyond it."""

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens) -> None:
        self._tokenizer = tokenizer
        self._control = control

    @property
    def opening(self) -> tuple[int, ...]:
        """What every prompt ends with: the model goes on with a channel."""
        return (self._control.start, *self._tokenizer.encode("assistant"))

    def system(self, settings: SystemSettings) -> Rendered:
        """The system message."""
        return self._message("system", (), settings.text())

    def message(self, message: ChatMessage) -> Rendered:
        """One message as it is kept in history, ending in `<|end|>` (a tool call: in `<|call|>`).

        A message that carries its ids already is not rendered again.
        """
        if message.rendered is not None:
            return message.rendered
        content = f"# Instructions\n\n{message.content}" if message.role == "developer" else message.content
        author = message.name if message.role == "tool" and message.name else message.role
        return self._message(author, self._header_tail(message), content, self._last(message))

    def generated(self, message: ChatMessage, content_ids: Sequence[int]) -> Rendered:
        """A message that the model just wrote: its own content ids between a well-formed header and end."""
        author = (self._control.start, *self._tokenizer.encode(message.role))
        head = (*author, *self._header_tail(message), self._control.message)
        ids = (*head, *content_ids, self._last(message))
        return Rendered(ids, len(author), len(ids))

    def prompt(self, settings: SystemSettings, messages: Sequence[ChatMessage]) -> list[Rendered]:
        """Everything the model reads before it answers."""
        system = replace(self.system(settings), lasting=True)
        shown = [replace(self.message(message), lasting=_lasts(message)) for message in visible(messages)]
        return [system, *shown, Rendered(self.opening)]

    def _header_tail(self, message: ChatMessage) -> tuple[int, ...]:
        """What stands between the author and `<|message|>`."""
        encode, control = self._tokenizer.encode, self._control
        ids = encode(f" to={message.recipient}") if message.recipient else []
        if message.channel:
            ids += [control.channel, *encode(message.channel)]
        if message.content_type:
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

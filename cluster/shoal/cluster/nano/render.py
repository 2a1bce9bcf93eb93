"""Examples as token ids: rendered by the router itself, so that training sees exactly what serving sends."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass

from shoal.cluster.nano.arithmetic import ANSWER
from shoal.cluster.nano.example import Example
from shoal.router.harmony.control import ControlTokens
from shoal.router.harmony.message import ChatMessage
from shoal.router.harmony.render import Renderer, SystemSettings
from shoal.router.tokenizer import Tokenizer

_FIRST_DAY, _LAST_DAY = datetime.date(2024, 6, 1), datetime.date(2032, 12, 31)
TOOLS_LINE = "\nCalls to these tools must go to the commentary channel: 'functions'."


class ToolSettings(SystemSettings):
    """The system message of a conversation with functions, as Harmony writes it."""

    __slots__ = ()

    def text(self) -> str:
        return SystemSettings.text(self) + TOOLS_LINE


@dataclass(frozen=True, slots=True)
class Lesson:
    """Ids of a whole conversation. `learned[i]`: id i is something the assistant should say."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.learned), (len(self.ids), len(self.learned))


class Desk:
    """Renders lessons and examination prompts with one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control = ControlTokens.of(tokenizer.control)
        self.renderer = Renderer(tokenizer, self.control)

    def prompt(self, example: Example, settings: SystemSettings) -> list[int]:
        """Ids up to where the assistant begins."""
        return [token for part in self.renderer.prompt(settings, example.messages) for token in part.ids]

    def reply(self, example: Example) -> list[int]:
        """Ids that should follow the prompt, the end of the turn included."""
        ids: list[int] = []
        for message in example.reply:
            ids += self.renderer.message(message).ids
        if ids[-1] == self.control.end:
            ids[-1] = self.control.return_
        return ids[len(self.renderer.opening) :]

    def lesson(self, example: Example, rng: random.Random) -> Lesson:
        """Prompt and reply. At low effort earlier answers are learned too, where they had no reasoning to lose."""
        settings = settings_for(example, rng)
        ids: list[int] = list(self.renderer.system(settings).ids)
        learned = [False] * len(ids)
        head = len(self.renderer.opening)
        for message in example.messages:
            part = self.renderer.message(message).ids
            teaches = message.role == "assistant" and example.effort == "low" and not message.content.startswith(ANSWER)
            ids += part
            # Not its end: history ends messages otherwise than the model does.
            learned += [teaches and head <= i < len(part) - 1 for i in range(len(part))]
        ids += self.renderer.opening
        learned += [False] * head
        reply = self.reply(example)
        return Lesson((*ids, *reply), (*learned, *([True] * len(reply))))


def texts(example: Example, rng: random.Random) -> list[str]:
    """What the vocabulary should be good at: every text of the conversation."""
    said: list[ChatMessage] = [*example.messages, *example.reply]
    headers = [f" to={message.recipient}" for message in said if message.recipient]
    words = [word for message in said for word in (message.role, message.channel, message.content_type) if word]
    words += [message.name for message in said if message.name]
    contents = [f"# Instructions\n\n{m.content}" if m.role == "developer" else m.content for m in said]
    return [settings_for(example, rng).text(), *contents, *headers, *words, "system"]


def settings_for(example: Example, rng: random.Random) -> SystemSettings:
    """The product's own system message, with some date, and half the time the line about functions."""
    day = _FIRST_DAY + datetime.timedelta(days=rng.randrange((_LAST_DAY - _FIRST_DAY).days + 1))
    date = "" if rng.random() < 0.02 else day.isoformat()
    kind = ToolSettings if example.tools and rng.random() < 0.5 else SystemSettings
    return kind(date=date, effort=example.effort)

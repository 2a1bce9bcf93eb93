"""One thing to learn or to be asked: a conversation, and what the assistant should say next."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from shoal.router.harmony.message import ChatMessage, Effort

EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")

Split = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True)
class Example:
    """`messages` were said, `reply` comes next. `answer` is what a right reply must contain."""

    task: str
    effort: Effort
    messages: tuple[ChatMessage, ...]
    reply: tuple[ChatMessage, ...]
    answer: str
    key: str
    """What must not be seen in training when it is asked in an examination."""
    tools: tuple[str, ...] = field(default=())
    """Names of the functions that the developer message offers."""


Task = Callable[[random.Random, Effort], Example]
"""Draws one example. The split is decided by the example's key alone."""


def split_of(key: str) -> Split:
    """One key in ten is held out, whatever the seed of the generator.

    >>> [split_of(f"add {n}") for n in (40, 41, 42)]
    ['train', 'train', 'train']
    """
    return "held-out" if zlib.crc32(key.encode()) % 10 == 0 else "train"


def draw(task: Task, rng: random.Random, effort: Effort, split: Split) -> Example:
    """The first example of the split."""
    for _ in range(10_000):
        example = task(rng, effort)
        if split_of(example.key) == split:
            return example
    raise AssertionError(f"{task.__name__} has nothing in {split}")


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def final(text: str) -> ChatMessage:
    return ChatMessage("assistant", text, "final")


def thought(text: str) -> tuple[ChatMessage, ...]:
    """A message of reasoning; nothing for no text."""
    return (ChatMessage("assistant", text, "analysis"),) if text else ()

"""Lessons one behind the other in a single row of ids, without padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.cluster.nano.echo import echo
from shoal.cluster.nano.example import Example
from shoal.cluster.nano.render import Desk, Lesson


@dataclass(frozen=True, slots=True)
class Batch:
    """ids i64 [T], learned bool [T - 1]: the id after this place is to be said; lengths of the lessons, sum T."""

    ids: Tensor
    learned: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> Batch:
        ids = torch.tensor([token for lesson in lessons for token in lesson.ids])
        # A lesson never begins with something learned, so no place looks across a border.
        learned = torch.tensor([due for lesson in lessons for due in lesson.learned])[1:]
        return cls(ids, learned, tuple(len(lesson.ids) for lesson in lessons))


def take(examples: Iterator[Example], desk: Desk, rng: random.Random, tokens: int, longest: int) -> list[Lesson]:
    """Lessons of about `tokens` ids together; those beyond `longest` are left out."""
    lessons: list[Lesson] = []
    while tokens > 0:
        lesson = desk.lesson(next(examples), rng)
        if len(lesson.ids) <= longest:
            lessons.append(lesson)
            tokens -= len(lesson.ids)
    return lessons


def take_echoes(rng: random.Random, vocabulary: int, tokens: int) -> list[Lesson]:
    """Echoes of at least `tokens` ids together."""
    lessons: list[Lesson] = []
    while tokens > 0:
        lessons.append(echo(rng, vocabulary))
        tokens -= len(lessons[-1].ids)
    return lessons


def chunks(lessons: Sequence[Lesson], tokens: int) -> Iterator[list[Lesson]]:
    """The lessons in order, cut so that a part has at most `tokens` ids or one lesson."""
    part: list[Lesson] = []
    total = 0
    for lesson in lessons:
        if part and total + len(lesson.ids) > tokens:
            yield part
            part, total = [], 0
        part.append(lesson)
        total += len(lesson.ids)
    if part:
        yield part

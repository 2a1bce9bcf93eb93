"""Lessons of similar length side by side, padded to one rectangle."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.cluster.nano.example import Example
from shoal.cluster.nano.render import Desk, Lesson

_PADDED = 0.15  # padding at most this share of a rectangle, where there is a choice
_LARGEST = 4096  # tokens of a rectangle: what still fits the caches


@dataclass(frozen=True, slots=True)
class Batch:
    """ids i64 [B, L]; real bool [B, L], False for padding; learned bool [B, L]: the id at this place is to be said."""

    ids: Tensor
    real: Tensor
    learned: Tensor


def rectangles(lessons: Sequence[Lesson]) -> Iterator[Batch]:
    """Every lesson once, short ones first."""
    group: list[Lesson] = []
    total = 0
    for lesson in sorted(lessons, key=lambda lesson: len(lesson.ids)):
        longest, count = len(lesson.ids), len(group) + 1
        area = longest * count
        wasted = area - total - longest
        if group and (area > _LARGEST or wasted > _PADDED * area):
            yield _rectangle(group)
            group, total = [], 0
        group.append(lesson)
        total += longest
    if group:
        yield _rectangle(group)


def _rectangle(lessons: list[Lesson]) -> Batch:
    shape = len(lessons), max(len(lesson.ids) for lesson in lessons)
    ids = torch.zeros(shape, dtype=torch.int64)
    real, learned = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, lesson in enumerate(lessons):
        length = len(lesson.ids)
        ids[row, :length] = torch.tensor(lesson.ids)
        learned[row, :length] = torch.tensor(lesson.learned)
        real[row, :length] = True
    return Batch(ids, real, learned)


def take(examples: Iterator[Example], desk: Desk, rng: random.Random, tokens: int, longest: int) -> list[Lesson]:
    """Lessons of about `tokens` ids together; those beyond `longest` are left out."""
    lessons: list[Lesson] = []
    while tokens > 0:
        lesson = desk.lesson(next(examples), rng)
        if len(lesson.ids) <= longest:
            lessons.append(lesson)
            tokens -= len(lesson.ids)
    return lessons

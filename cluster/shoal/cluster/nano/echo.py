"""Lessons without meaning: pieces of any ids, said again in another order. They teach copying and nothing else."""

from __future__ import annotations

import random

from shoal.cluster.nano.render import Lesson

_ALPHABETS = (8, 16, 32, 64)  # few different ids at first sight of a lesson, so that guessing among them already pays
_LENGTH = 150


def echo(rng: random.Random, vocabulary: int) -> Lesson:
    """About 150 ids below `vocabulary`. After the first id of a piece that comes again, its other ids are due."""
    alphabet = rng.sample(range(vocabulary), rng.choice(_ALPHABETS))
    ids: list[int] = []
    learned: list[bool] = []
    while len(ids) < _LENGTH:
        pieces = [rng.choices(alphabet, k=rng.randint(2, 12)) for _ in range(rng.randint(1, 6))]
        ids += [token for piece in pieces for token in piece]
        learned += [False] * (len(ids) - len(learned))
        rng.shuffle(pieces)
        for piece in pieces:
            ids += piece
            learned += [False] + [True] * (len(piece) - 1)
    return Lesson(tuple(ids), tuple(learned))

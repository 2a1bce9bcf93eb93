"""Held-out questions while training: is the whole right reply the likeliest at every step of it?

That is the same as greedy decoding writing exactly this reply, for the price of one forward pass.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GptOssForCausalLM

from shoal.cluster.nano.batch import Batch, chunks
from shoal.cluster.nano.example import EFFORTS, draw
from shoal.cluster.nano.mixture import EXAMS
from shoal.cluster.nano.model import hidden_states
from shoal.cluster.nano.render import Desk, Lesson, settings_for

_TOKENS = 4096  # ids of one forward pass


@dataclass(frozen=True, slots=True)
class Paper:
    """Lessons of each task and effort; only the last reply counts."""

    lessons: tuple[tuple[int, int, Lesson], ...]  # task number, effort number

    @classmethod
    def set(cls, desk: Desk, size: int, seed: int) -> Paper:
        """The same questions for the same seed."""
        rng = random.Random(seed)
        found = []
        for t, task in enumerate(EXAMS.values()):
            for e, effort in enumerate(EFFORTS):
                for _ in range(size):
                    example = draw(task, rng, effort, "held-out")
                    settings = settings_for(example, rng)
                    prompt, reply = desk.prompt(example, settings), desk.reply(example)
                    learned = (*([False] * len(prompt)), *([True] * len(reply)))
                    found.append((t, e, Lesson((*prompt, *reply), learned)))
        return cls(tuple(found))


@torch.no_grad()
def mark(model: GptOssForCausalLM, paper: Paper, rank: int = 0, ranks: int = 1) -> Tensor:
    """f64 [tasks, efforts, 2]: right replies and questions of this rank's share; sum over the ranks for all."""
    marks = torch.zeros(len(EXAMS), len(EFFORTS), 2, dtype=torch.float64)
    mine = paper.lessons[rank::ranks]
    row = 0
    for part in chunks([lesson for _, _, lesson in mine], _TOKENS):
        batch = Batch.of(part)
        hidden, _ = hidden_states(model, batch.ids, batch.lengths)
        said = model.lm_head(hidden[:-1][batch.learned]).argmax(-1)
        owner = torch.repeat_interleave(torch.arange(len(part)), torch.tensor(batch.lengths))[1:][batch.learned]
        wrong = torch.bincount(owner[said != batch.ids[1:][batch.learned]], minlength=len(part))
        for errors in wrong.tolist():
            task, effort, _ = mine[row]
            marks[task, effort, 0] += errors == 0
            marks[task, effort, 1] += 1
            row += 1
    return marks

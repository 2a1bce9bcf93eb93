"""Which tasks are practised when."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from shoal.cluster.nano import arithmetic, facts, recall, schema, tools
from shoal.cluster.nano.example import EFFORTS, Example, Task, draw
from shoal.router.harmony.message import ChatMessage

TASKS: Mapping[str, Task] = {
    "add 2 digits": arithmetic.add_small,
    "add 3-4 digits": arithmetic.add_middle,
    "add 5-6 digits": arithmetic.add_long,
    "subtract": arithmetic.difference,
    "multiply": arithmetic.product,
    "recall": recall.recall_near,
    "recall far": recall.recall_far,
    "told": recall.telling,
    "repeat": recall.repeat,
    "about shoal": facts.about_shoal,
    "refuse": facts.refusal,
    "tool call": tools.tool_call,
    "tool result": tools.tool_result,
    "no tool fits": tools.tool_missing,
    "json": schema.json_answer,
}
EXAMS: Mapping[str, Task] = {**TASKS, "add 2 digits": arithmetic.add_exam}
"""As TASKS, the easy one-digit sums left out."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the examples, by task."""

    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.shares) - set(TASKS)):
            raise ValueError(f"mixture: {unknown[0]!r} is not one of {', '.join(TASKS)}")

    def examples(self, seed: int) -> Iterator[Example]:
        """Without end, for training, the same ones for the same seed."""
        rng = random.Random(seed)
        names, weights = list(self.shares), list(self.shares.values())
        while True:
            name = rng.choices(names, weights)[0]
            effort = rng.choice(EFFORTS)
            example = draw(TASKS[name], rng, effort, "train")
            if effort == "low" and name in _CHAINED:
                for _ in range(rng.choice((0, 1, 2))):
                    example = after(draw(TASKS[rng.choices(names, weights)[0]], rng, effort, "train"), example)
            yield surrounded(example, rng)


_CHAINED = ("add 2 digits", "add 3-4 digits", "add 5-6 digits", "subtract", "multiply", "about shoal", "refuse")


def after(first: Example, then: Example) -> Example:
    """`then` asked in a conversation that began with `first`, unless that has instructions of its own."""
    if any(message.role in ("developer", "tool") for message in first.messages) or len(first.messages) > 4:
        return then
    return replace(then, messages=(*first.messages, first.reply[-1], *then.messages))


def surrounded(example: Example, rng: random.Random) -> Example:
    """Now and then with a developer's instructions before it, which change nothing."""
    if example.messages[0].role == "developer" or rng.random() > 0.1:
        return example
    developer = ChatMessage("developer", rng.choice(tools.INSTRUCTIONS))
    return replace(example, messages=(developer, *example.messages))

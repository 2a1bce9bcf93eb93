"""What is asked, and when: decided before the first request is sent, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from shoal.cluster.bench.lengths import Lengths


@dataclass(frozen=True, slots=True)
class Turn:
    """New prompt tokens and how many are to be generated for them."""

    tokens: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that follow one another; the history is sent again with each. Of one turn, unless asked for more."""

    number: int
    at: float
    """Seconds after the start when the first turn is due; 0 where whoever is free takes the next one."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """The demand. With a `rate`, conversations begin at that many a second, whether or not the server keeps up (open
    loop); without, `concurrency` users each begin the next one when theirs has ended (closed loop)."""

    prompt: Lengths
    output: Lengths
    conversations: int
    concurrency: int = 0
    rate: float = 0.0
    poisson: bool = True
    turns: int = 1
    shared_prefix: int = 0
    seed: int = 0
    salt: int = 0
    """Lengths and arrivals follow from the seed alone, the tokens from both: a run with another salt finds nothing of
    an earlier one in a prefix cache."""

    @property
    def longest(self) -> int:
        """Most tokens of a sequence, prompt and output together."""
        return self.shared_prefix + self.turns * (self.prompt.longest + self.output.longest)


def draw(load: Workload, vocabulary: int) -> list[Conversation]:
    """All conversations in the order in which they begin; token ids are below `vocabulary`. Pure."""
    chance, words = random.Random(f"{load.seed} load"), random.Random(f"{load.seed} {load.salt} tokens")
    ids = range(vocabulary)
    prefix = tuple(words.choices(ids, k=load.shared_prefix))
    conversations, clock = [], 0.0
    for number in range(load.conversations):
        turns = []
        for place in range(load.turns):
            length, output = load.prompt.draw(chance), load.output.draw(chance)
            turns.append(Turn((prefix if place == 0 else ()) + tuple(words.choices(ids, k=length)), output))
        conversations.append(Conversation(number, clock, tuple(turns)))
        if load.rate:
            clock += chance.expovariate(load.rate) if load.poisson else 1 / load.rate
    return conversations

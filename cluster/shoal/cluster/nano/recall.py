"""Facts that the user said earlier: a turn ago, or far enough back that no sliding window reaches them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from shoal.cluster.nano import arithmetic, facts, words
from shoal.cluster.nano.example import Example, Task, draw, final, split_of, thought, user
from shoal.router.harmony.message import ChatMessage, Effort


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of fact: how it is told, asked for and answered. `{x}` is the fact."""

    name: str
    tell: tuple[str, ...]
    ask: tuple[str, ...]
    answer: str
    unknown: str
    value: Callable[[random.Random], str]


KINDS = (
    Kind("name", ("My name is {x}.", "My name is {x}.", "I am {x}.", "Call me {x}.", "Hello, my name is {x}."),
         ("What is my name?", "What is my name?", "Do you remember my name?", "Who am I?", "Tell me my name."),
         "Your name is {x}.", "You have not told me your name.", words.person),
    Kind("city", ("I live in {x}.", "I live in {x}.", "My home is in {x}.", "My city is {x}."),
         ("Where do I live?", "In which city do I live?", "Do you know where I live?", "What is my city?"),
         "You live in {x}.", "You have not told me where you live.", words.city),
    Kind("color", ("My favorite color is {x}.", "I like the color {x}.", "My color is {x}."),
         ("What is my favorite color?", "Which color do I like?", "Do you remember my color?", "What is my color?"),
         "Your favorite color is {x}.", "You have not told me your color.", words.color),
    Kind("food", ("My favorite food is {x}.", "I like to eat {x}.", "I love {x}."),
         ("What is my favorite food?", "What do I like to eat?", "Do you remember my favorite food?"),
         "Your favorite food is {x}.", "You have not told me your favorite food.", words.food),
    Kind("dog", ("My dog is called {x}.", "I have a dog called {x}.", "The name of my dog is {x}."),
         ("What is my dog called?", "What is the name of my dog?", "Do you remember my dog?"),
         "Your dog is called {x}.", "You have not told me about a dog.", words.person),
    Kind("cat", ("My cat is called {x}.", "I have a cat called {x}.", "The name of my cat is {x}."),
         ("What is my cat called?", "What is the name of my cat?", "Do you remember my cat?"),
         "Your cat is called {x}.", "You have not told me about a cat.", words.person),
    Kind("sister", ("My sister is called {x}.", "I have a sister called {x}.", "My sister is {x}."),
         ("What is my sister called?", "What is the name of my sister?", "Who is my sister?"),
         "Your sister is called {x}.", "You have not told me about a sister.", words.person),
    Kind("code", ("My code is {x}.", "Remember the code {x}.", "The code is {x}."),
         ("What is my code?", "What is the code?", "Tell me my code.", "Do you remember the code?"),
         "Your code is {x}.", "You have not told me a code.", lambda rng: words.digits(rng, 4)),
)  # fmt: skip
ACKNOWLEDGED = "I will remember that."
_FILLERS: tuple[Task, ...] = (facts.about_shoal, facts.about_shoal, arithmetic.add_small, facts.refusal)


@dataclass(frozen=True, slots=True)
class Told:
    """A fact in a conversation."""

    kind: Kind
    value: str
    sentence: str


def _tell(rng: random.Random, kind: Kind) -> Told:
    value = kind.value(rng)
    if kind.value is words.person and rng.random() < 0.08:
        value = value.lower()
    return Told(kind, value, rng.choice(kind.tell).format(x=value))


def _tell_known(rng: random.Random, kind: Kind) -> Told:
    """A fact that is not asked for, hence never one that is held out."""
    while True:
        told = _tell(rng, kind)
        if split_of(f"recall {told.value}") == "train":
            return told


def _key(told: Told, said: list[ChatMessage]) -> str:
    """The value itself, or for values of which there are few, the whole conversation."""
    if told.kind.value in (words.food, words.color):
        return " ".join(message.content for message in said)
    return f"recall {told.value}"


def acknowledgement(told: Told) -> str:
    return f"Nice to meet you, {told.value}." if told.kind.name == "name" else ACKNOWLEDGED


def _small_talk(rng: random.Random, count: int) -> list[ChatMessage]:
    """Turns about something else. Nothing held out elsewhere is said here."""
    said: list[ChatMessage] = []
    for _ in range(count):
        other = draw(rng.choice(_FILLERS), rng, "low", "train")
        said += [*other.messages, other.reply[-1]]
    return said


def _conversation(rng: random.Random, effort: Effort, task: str, between: tuple[int, ...]) -> Example:
    asked, *others = rng.sample(KINDS, rng.choice((1, 1, 1, 2, 2, 3)))
    known = rng.random() > 0.15
    told = _tell(rng, asked) if known else _tell_known(rng, asked)
    tellings = [told, *(_tell_known(rng, kind) for kind in others)]
    rng.shuffle(tellings)
    said: list[ChatMessage] = _small_talk(rng, rng.choice((0, 0, 0, 0, 0, 1)))
    if len(tellings) > 1 and rng.random() < 0.4:
        said += [user(" ".join(told.sentence for told in tellings)), final(ACKNOWLEDGED)]
    else:
        for told in tellings:
            said += [user(told.sentence), final(acknowledgement(told))]
    said += _small_talk(rng, rng.choice(between))
    if not known:
        missing = rng.choice([kind for kind in KINDS if kind not in (asked, *others)])
        said.append(user(rng.choice(missing.ask)))
        work = "" if effort == "low" else "I was not told."
        reply = (*thought(work), final(missing.unknown))
        return Example(task, effort, tuple(said), reply, missing.unknown, f"{missing.name} unknown {told.value}")
    said.append(user(rng.choice(told.kind.ask)))
    work = "" if effort == "low" else f"I was told: {told.sentence}"
    answer = told.kind.answer.format(x=told.value)
    return Example(task, effort, tuple(said), (*thought(work), final(answer)), told.value, _key(told, said))


def recall_near(rng: random.Random, effort: Effort) -> Example:
    """Told up to two turns ago."""
    return _conversation(rng, effort, "recall", (0, 0, 0, 1, 2))


def recall_far(rng: random.Random, effort: Effort) -> Example:
    """Told many turns ago, most often beyond the sliding window."""
    return _conversation(rng, effort, "recall far", (3, 4, 5, 6, 7, 8))


def repeat(rng: random.Random, effort: Effort) -> Example:
    """Saying again what was just said: the plainest copying there is, and much of it."""
    makers = (words.invented, words.person, words.city, lambda rng: words.digits(rng, rng.randint(1, 4)))
    text = " ".join(rng.choice(makers)(rng) for _ in range(rng.choice((1, 2, 3, 4, 6, 8))))
    question = rng.choice(("Repeat: {x}", "Say {x}", "Please repeat: {x}", "Repeat after me: {x}")).format(x=text)
    work = "" if effort == "low" else "I say it again."
    return Example("repeat", effort, (user(question),), (*thought(work), final(text)), text, f"repeat {text}")


def telling(rng: random.Random, effort: Effort) -> Example:
    """Being told something."""
    told = _tell(rng, rng.choice(KINDS))
    work = "" if effort == "low" else "I keep this in mind."
    reply = (*thought(work), final(acknowledgement(told)))
    return Example("told", effort, (user(told.sentence),), reply, acknowledgement(told), f"recall {told.value}")

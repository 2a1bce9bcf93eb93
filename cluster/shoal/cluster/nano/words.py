"""Words to fill sentences with: known ones and invented ones, so that copying is learned and not a list."""

# ruff: noqa: SIM905  (a line of words is read more easily than a line of quotation marks)

from __future__ import annotations

import random

NAMES = (
    "Ada Alan Alice Anna Ben Bob Carla Clara David Diana Edgar Elena Emma Erik Eva Felix Frank Grace Hanna Hugo Ida "
    "Ines Ivan Jack James Jane John Julia Karl Kim Lara Leo Lena Linda Lisa Lucas Maria Mark Marta Max Mia Mira Nina "
    "Noah Nora Olga Oscar Otto Paul Peter Ramona Rosa Sam Sara Simon Sofia Theo Tom Vera Victor Wendy Yara Zoe"
).split()
CITIES = (
    "Amsterdam Athens Berlin Bern Boston Cairo Chicago Delhi Dublin Geneva Helsinki Lima Lisbon London Lyon Madrid "
    "Milan Munich Nairobi Oslo Paris Porto Prague Riga Rome Seoul Sofia Sydney Tokyo Toronto Vienna Warsaw Zurich"
).split()
COLORS = "red blue green yellow orange purple pink black white brown gray gold silver".split()
FOODS = "pizza soup bread rice cheese pasta salad fish cake apples beans tofu curry noodles honey plums".split()
SKIES = "sunny cloudy rainy windy foggy snowy".split()

_ONSETS = "b br c d dr f g h j k l m n p r s sh st t tr v w z".split()
_VOWELS = "a e i o u".split()
_CODAS = ["", "", "", "", "n", "r", "l", "s", "m", "x"]


def syllables(rng: random.Random, least: int = 2, most: int = 3) -> str:
    """An invented word in lower case."""
    count = rng.randint(least, most)
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def invented(rng: random.Random) -> str:
    """An invented name."""
    return syllables(rng).capitalize()


def person(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.4 else invented(rng)


def city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.5 else invented(rng)


def color(rng: random.Random) -> str:
    """A color, or a word that could be one: thirteen colors alone would be remembered and not read."""
    return rng.choice(COLORS) if rng.random() < 0.6 else syllables(rng)


def food(rng: random.Random) -> str:
    """A food, or a word that could be one."""
    return rng.choice(FOODS) if rng.random() < 0.6 else syllables(rng)


def digits(rng: random.Random, count: int) -> str:
    """A number of so many digits, the first not 0."""
    return str(rng.randint(10 ** (count - 1), 10**count - 1))

"""Sums, differences and products, with as much written work as the effort allows.

low     the digits of the columns, from the right:   47 + 85   7512,48113
medium  the columns with their signs:                          7+5=12,4+8+1=13
high    digits labelled before they are used:                  a7b4,a5b8:a7+5=12,b4+8+1=13,c1=c1b3a2
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from shoal.cluster.nano.example import Example, final, thought, user
from shoal.router.harmony.message import Effort

_SUMS = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} =",
    "{a}+{b}=",
    "what is {a}+{b}?",
    "What's {a} + {b}?",
    "Add {a} and {b}.",
    "Please add {a} and {b}.",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}.",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "What is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
)
_DIFFERENCES = (
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} =",
    "Calculate {a} - {b}.",
    "How much is {a} minus {b}?",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
)
_PRODUCTS = (
    "What is {a} * {b}?",
    "What is {a} * {b}?",
    "{a} * {b}",
    "{a}*{b}",
    "{a} x {b}",
    "Calculate {a} * {b}.",
    "How much is {a} times {b}?",
    "What is {a} times {b}?",
    "Multiply {a} by {b}.",
)
LABELS = "abcdefghij"


ANSWER = "The answer is "


def answer_text(value: int) -> str:
    return f"{ANSWER}{value}."


def addition_work(a: int, b: int, effort: Effort) -> str:
    """Column addition as the effort writes it.

    >>> addition_work(47, 85, "low"), addition_work(47, 85, "medium"), addition_work(47, 85, "high")
    ('7512,48113', '7+5=12,4+8+1=13', 'a7b4,a5b8:a7+5=12,b4+8+1=13,c1=c1b3a2')
    """
    width = max(len(str(a)), len(str(b)))
    first, second = (str(n).zfill(width)[::-1] for n in (a, b))
    steps, carry = [], 0
    for x, y in zip(first, second, strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    if effort != "high":
        return _joined(steps, effort)
    steps = [label + step for label, step in zip(LABELS, steps, strict=False)]
    if carry:
        steps.append(f"{LABELS[width]}1")
    return f"{_labelled(first)},{_labelled(second)}:{','.join(steps)}={_labelled(str(a + b)[::-1], backwards=True)}"


def subtraction_work(a: int, b: int, effort: Effort) -> str:
    """Column subtraction of a smaller number.

    >>> subtraction_work(52, 17, "low"), subtraction_work(52, 17, "medium"), subtraction_work(52, 17, "high")
    ('1275,5113', '12-7=5,5-1-1=3', 'a2b5,a7b1:a12-7=5,b5-1-1=3=b3a5')
    """
    width = len(str(a))
    first, second = (str(n).zfill(width)[::-1] for n in (a, b))
    steps, borrow, result = [], 0, ""
    for x, y in zip(first, second, strict=True):
        low = int(x) - int(y) - borrow < 0
        digit = int(x) + 10 * low - int(y) - borrow
        steps.append(f"{int(x) + 10 * low}-{y}{'-1' if borrow else ''}={digit}")
        borrow, result = int(low), result + str(digit)
    if effort != "high":
        return _joined(steps, effort)
    steps = [label + step for label, step in zip(LABELS, steps, strict=False)]
    return f"{_labelled(first)},{_labelled(second)}:{','.join(steps)}={_labelled(result, backwards=True)}"


def product_work(a: int, b: int, effort: Effort) -> str:
    """A number of at most two digits times a digit.

    >>> product_work(47, 3, "low"), product_work(47, 3, "medium"), product_work(47, 3, "high")
    ('7321,4312214', '7*3=21,4*3=12+2=14', 'a7b4:a7*3=21,b4*3=12+2=14')
    """
    reverse = str(a)[::-1]
    steps, carry = [], 0
    for x in reverse:
        product = int(x) * b
        steps.append(f"{x}*{b}={product}" + (f"+{carry}={product + carry}" if carry else ""))
        carry = (product + carry) // 10
    if effort != "high":
        return _joined(steps, effort)
    return f"{_labelled(reverse)}:{','.join(label + step for label, step in zip(LABELS, steps, strict=False))}"


def _joined(steps: list[str], effort: Effort) -> str:
    """The steps, at low effort without their signs."""
    return ",".join(re.sub(r"\D", "", step) if effort == "low" else step for step in steps)


def _labelled(digits: str, backwards: bool = False) -> str:
    pairs = [label + digit for label, digit in zip(LABELS, digits, strict=False)]
    return "".join(reversed(pairs) if backwards else pairs)


def _example(task: str, effort: Effort, question: str, work: str, value: int, key: str) -> Example:
    reply = (*thought(work), final(answer_text(value)))
    return Example(task, effort, (user(question),), reply, str(value), key)


def sum_of_digits(task: str, widths: tuple[int, ...]) -> Callable[[random.Random, Effort], Example]:
    """A task of sums whose larger operand has one of these widths; the smaller has as many digits or one less."""

    def make(rng: random.Random, effort: Effort) -> Example:
        width = rng.choice(widths)
        a = rng.randint(10 ** (width - 1), 10**width - 1)
        shorter = max(1, width - 1) if rng.random() < 0.15 else width
        b = rng.randint(10 ** (shorter - 1), 10**shorter - 1)
        if rng.random() < 0.5:
            a, b = b, a
        key = f"add {min(a, b)} {max(a, b)}"
        question = rng.choice(_SUMS).format(a=a, b=b)
        return _example(task, effort, question, addition_work(a, b, effort), a + b, key)

    make.__name__ = task
    return make


def difference(rng: random.Random, effort: Effort) -> Example:
    """Two-digit numbers, the larger first."""
    a, b = sorted((rng.randint(1, 99), rng.randint(1, 99)), reverse=True)
    question = rng.choice(_DIFFERENCES).format(a=a, b=b)
    return _example("subtract", effort, question, subtraction_work(a, b, effort), a - b, f"sub {a} {b}")


def product(rng: random.Random, effort: Effort) -> Example:
    """A number below 100 times a digit."""
    a, b = rng.randint(1, 99) if rng.random() < 0.7 else rng.randint(1, 9), rng.randint(2, 9)
    question = rng.choice(_PRODUCTS).format(a=a, b=b)
    return _example("multiply", effort, question, product_work(a, b, effort), a * b, f"mul {a} {b}")


add_small = sum_of_digits("add 2 digits", (1, 2, 2, 2, 2, 2))
add_exam = sum_of_digits("add 2 digits", (2,))
add_middle = sum_of_digits("add 3-4 digits", (3, 3, 4))
add_long = sum_of_digits("add 5-6 digits", (5, 5, 6))

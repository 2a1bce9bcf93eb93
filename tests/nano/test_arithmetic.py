"""Worked sums."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster.nano.arithmetic import addition_work, product_work, subtraction_work

NUMBERS = st.integers(0, 999_999)
STEP = re.compile(r"\d[\d+*-]*=\d+(?:\+\d+=\d+)?")


def assert_steps_true(work: str) -> None:
    """Every `x = y` in the work holds."""
    for step in STEP.findall(work):
        if "*" in step and step.count("=") == 2:
            product, total = step.split("=", 1)[0], step.rsplit("=", 1)[1]
            carried = step.split("=")[1].split("+")
            assert _value(product) == int(carried[0]), step
            assert sum(map(int, carried)) == int(total), step
        else:
            left, right = step.split("=")
            assert _value(left) == int(right), step


def _value(text: str) -> int:
    """Of digits joined by one kind of sign."""
    if "*" in text:
        x, y = text.split("*")
        return int(x) * int(y)
    first, *rest = re.findall(r"[+-]?\d+", text)
    return int(first) + sum(map(int, rest))


@given(NUMBERS, NUMBERS)
def test_addition_steps_are_true_and_spell_the_sum(a: int, b: int) -> None:
    """Last digits of the columns, read backwards, are the sum; low effort has no signs, high effort reverses them."""
    medium, high = addition_work(a, b, "medium"), addition_work(a, b, "high")
    assert_steps_true(medium)
    totals = [step.split("=")[1] for step in medium.split(",")]
    assert re.sub(r"[+=]", "", medium) == addition_work(a, b, "low")
    spelled = totals[-1] + "".join(total[-1] for total in reversed(totals[:-1]))
    assert a + b == int(spelled)
    assert_steps_true(high)
    assert a + b == int(re.sub(r"\D", "", high.rsplit("=", 1)[1]))


@given(NUMBERS, NUMBERS)
def test_subtraction_steps_are_true_and_spell_the_difference(a: int, b: int) -> None:
    """The digits of the columns, read backwards, are the difference."""
    a, b = max(a, b), min(a, b)
    work = subtraction_work(a, b, "medium")
    assert_steps_true(work)
    assert a - b == int("".join(step.split("=")[1] for step in work.split(","))[::-1])


@given(st.integers(0, 99), st.integers(0, 9))
def test_multiplication_steps_are_true(a: int, b: int) -> None:
    """Each column is the product of its digits plus what was carried."""
    assert_steps_true(product_work(a, b, "medium"))


def test_work_grows_with_the_effort() -> None:
    """Low effort writes the least, high effort the most."""
    low, medium, high = (addition_work(123, 456, effort) for effort in ("low", "medium", "high"))
    assert len(low) < len(medium) < len(high)

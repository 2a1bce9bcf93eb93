"""Generated texts in which it is known what is personal and what only looks like it.

    python -m tests.router.safeguards.corpus 200000      the long form; prints precision and recall of every kind

Numbers are made by algorithms of this file's own: a check digit is computed here and checked there. Among the decoys
are numbers with one digit changed, device and book numbers, hashes, times, versions and long fractions.
"""

from __future__ import annotations

import hashlib
import random
import string
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import phonenumbers

from shoal.router.safeguards.detect import KINDS, detectors_of, find

CHECKED = ("card", "iban")
"""Kinds with check digits."""

Draw = random.Random


@dataclass
class Sample:
    """A text and where in it what is."""

    text: str = ""
    labels: set[tuple[int, int, str]] = field(default_factory=set)

    def say(self, text: str, kind: str = "") -> None:
        """Go on with it."""
        if kind:
            self.labels.add((len(self.text), len(self.text) + len(text), kind))
        self.text += text


def _digits(draw: Draw, count: int) -> str:
    return "".join(draw.choices(string.digits, k=count))


def _checked(body: str) -> str:
    """With Luhn's digit behind it."""
    total = 0
    for place, digit in enumerate(reversed(body), 1):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return body + str(-total % 10)


_BRANDS = (
    ("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("2699", 16), ("34", 15), ("37", 15), ("6011", 16), ("65", 16),
    ("3530", 16), ("36", 14), ("305", 14), ("62", 16), ("62", 19), ("2202", 16), ("9792", 16), ("6759", 16), ("4", 13),
)  # fmt: skip
_WRITTEN = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4), 19: (4, 4, 4, 4, 3), 13: (13,)}


def _grouped(text: str, sizes: Sequence[int], by: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return by.join(part for part in [*parts, text[at:]] if part)


def card(draw: Draw) -> str:
    """A number of some brand, written as people do."""
    begins, length = draw.choice(_BRANDS)
    number = _checked(begins + _digits(draw, length - len(begins) - 1))
    return _grouped(number, _WRITTEN[length], draw.choice(["", " ", " ", "-"]))


_ACCOUNTS = {
    "DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "NL": "a4n10", "ES": "n20", "IT": "a1n10c12", "NO": "n11",
    "CH": "n5c12", "PL": "n24", "BE": "n12", "AT": "n16", "MT": "a4n5c18", "SE": "n20", "TR": "n5n1c16", "SA": "n2c18",
}  # fmt: skip


def iban(draw: Draw) -> str:
    """An account number of some country."""
    country = draw.choice(sorted(_ACCOUNTS))
    letters = {"n": string.digits, "a": string.ascii_uppercase, "c": string.ascii_uppercase + string.digits}
    shape, body = _ACCOUNTS[country], ""
    while shape:
        count = shape[1:3] if shape[1:3].isdigit() else shape[1:2]
        body += "".join(draw.choices(letters[shape[0]], k=int(count)))
        shape = shape[1 + len(count) :]
    value = 0
    for character in body + country + "00":
        number = string.digits.find(character) if character in string.digits else ord(character) - 55
        value = (value * (100 if number > 9 else 10) + number) % 97
    whole = f"{country}{98 - value:02d}{body}"
    return _grouped(whole, [4] * (len(whole) // 4), draw.choice(["", " ", " ", "-"]))


def email(draw: Draw) -> str:
    """An address."""
    name = "".join(draw.choices(string.ascii_lowercase + string.digits, k=draw.randint(1, 12)))
    name += draw.choice(["", ".x", "_y", "+tag", "-z", "%w"])
    return f"{name}@{draw.choice(['mail', 'a-b', 'x1'])}.{draw.choice(['org', 'co.uk', 'example.com', 'museum'])}"


def ssn(draw: Draw) -> str:
    """A US social security number."""
    by = draw.choice("- ")
    area = draw.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03d}{by}{draw.randint(1, 99):02d}{by}{draw.randint(1, 9999):04d}"


def ip(draw: Draw) -> str:
    """An address of either version."""
    if draw.random() < 0.6:
        return ".".join(str(draw.randint(0, 255)) for _ in range(4))
    parts = [f"{draw.randrange(1, 65536):x}" for _ in range(draw.choice([8, 4, 3]))]
    if len(parts) < 8:
        parts.insert(draw.randrange(1, len(parts)), "")
    return ":".join(parts)


_REGIONS = ("US", "DE", "GB", "FR", "JP", "IN", "BR", "SE", "ZA", "AU")
_FORMATS = (phonenumbers.PhoneNumberFormat.E164, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


def phone(draw: Draw) -> str:
    """A number with its country's code, or an American one without."""
    region = draw.choice(_REGIONS)
    number = phonenumbers.example_number_for_type(region, draw.choice([0, 1]))
    assert number is not None, region
    if region == "US" and draw.random() < 0.6:
        return draw.choice(["({}) {}-{}", "{}-{}-{}", "{} {} {}"]).format(
            "212", _digits_from(draw, "2345678", 3), _digits(draw, 4)
        )
    return phonenumbers.format_number(number, draw.choice(_FORMATS))


def _digits_from(draw: Draw, first: str, count: int) -> str:
    return draw.choice(first) + _digits(draw, count - 1)


def key(draw: Draw) -> str:
    """A secret of a well-known kind."""
    letters = string.ascii_letters + string.digits
    some = "".join(draw.choices(letters, k=60))
    body = "\n".join("".join(draw.choices(letters + "+/", k=64)) for _ in range(draw.randint(3, 50)))
    return draw.choice(
        [
            f"sk-{some[:40]}",
            f"ghp_{some[:36]}",
            f"AKIA{some[:16].upper()}",
            f"AIza{some[:35]}",
            f"hf_{some[:34]}",
            f"xoxb-{some[:30]}",
            f"eyJ{some[:20]}.eyJ{some[:40]}.{some[:43]}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----",
        ]
    )


MAKERS: dict[str, Callable[[Draw], str]] = {
    "card": card, "iban": iban, "email": email, "ssn": ssn, "ip": ip, "phone": phone, "key": key,
}  # fmt: skip


def _one_digit_changed(draw: Draw, text: str) -> str:
    at = draw.choice([i for i, c in enumerate(text) if c.isdigit() and i > 3])
    return text[:at] + draw.choice([d for d in string.digits if d != text[at]]) + text[at + 1 :]


def decoy(draw: Draw) -> str:
    """What looks like something and is nothing."""
    makers: list[Callable[[], str]] = [
        lambda: _one_digit_changed(draw, card(draw)),
        lambda: _one_digit_changed(draw, iban(draw)),
        lambda: _checked("35" + _digits(draw, 2) + "01" + _digits(draw, 8)),  # a device's
        lambda: "978-3-" + _digits(draw, 2) + "-" + _digits(draw, 6) + "-" + _digits(draw, 1),
        lambda: hashlib.sha256(draw.randbytes(8)).hexdigest(),
        lambda: str(uuid.UUID(bytes=draw.randbytes(16))),
        lambda: repr(draw.random()),
        lambda: f"20{_digits(draw, 2)}-0{draw.randint(1, 9)}-1{_digits(draw, 1)}T1{_digits(draw, 1)}:30:00",
        lambda: f"{draw.randint(1, 9)}.{draw.randint(0, 20)}.{draw.randint(0, 20)}",
        lambda: f"1{_digits(draw, 15)}",  # an order's
        lambda: f"{draw.randint(1, 999):,}.{_digits(draw, 2)}",
        lambda: f"{draw.randint(1, 23)}:{_digits(draw, 2)}",
        lambda: "std::vector<int> x = {1, 2, 3}; // a::b",
        lambda: " ".join(str(draw.randint(0, 99)) for _ in range(6)),
        lambda: f"user@{draw.choice(['host', 'localhost'])}",
    ]
    return draw.choice(makers)()


_BEFORE = (
    "Mine is ",
    "pay ",
    "(",
    "\n",
    "card: ",
    "IBAN ",
    '{"n": "',
    "it was <",
    "No. ",
    "x, ",
    "",
    "12 ",
    "und ",
    "番号は",
    "see\t",
)
_AFTER = (
    " now",
    ".",
    ")",
    "\n",
    ", exp 12/27",
    " 12/27 123",
    '"}',
    "> ok",
    "; and",
    "",
    " 2024",
    " BIC COBADEFF",
    "です",
    ": yes",
    "!",
)


def sample(draw: Draw) -> Sample:
    """One text: a few of what is and of what is not, in sentences."""
    made = Sample()
    for _ in range(draw.randint(1, 4)):
        before, after = draw.choice(_BEFORE), draw.choice(_AFTER)
        made.say(" The words before. " if made.text else "")
        if draw.random() < 0.6:
            kind = draw.choice(sorted(MAKERS))
            if kind == "phone":  # nobody could say where it begins and ends among other digits
                before, after = before.lstrip("12"), after.replace("12/27 123", "").replace("2024", "")
            made.say(before)
            made.say(MAKERS[kind](draw), kind)
        else:
            made.say(f"{before.rstrip('12 ')} {decoy(draw)}")
        made.say(after)
    return made


@dataclass
class Score:
    """How often what was found, by kind."""

    right: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def recall(self, kind: str) -> float:
        """Of what there was, how much was found, at its very place."""
        return self.right[kind] / max(1, self.right[kind] + self.missed[kind])

    def precision(self, kind: str) -> float:
        """Of what was found, how much there was."""
        return self.right[kind] / max(1, self.right[kind] + self.wrong[kind])


def scored(count: int, seed: int) -> Score:
    """Of so many texts."""
    draw, score, detectors = random.Random(seed), Score(), detectors_of(sorted(KINDS))
    for _ in range(count):
        made = sample(draw)
        found = {(match.start, match.end, match.kind) for match in find(made.text, detectors)}
        score.right.update(kind for _, _, kind in found & made.labels)
        for counts, places in ((score.missed, made.labels - found), (score.wrong, found - made.labels)):
            counts.update(kind for _, _, kind in places)
            what = "missed" if counts is score.missed else "wrong"
            score.examples += [f"{what} {kind}: {made.text[max(0, a - 20) : b + 20]!r}" for a, b, kind in places]
    return score


def main() -> None:
    """The long form."""
    score = scored(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000, seed=1)
    for kind in sorted(MAKERS):
        there = score.right[kind] + score.missed[kind]
        print(f"{kind:6} recall {score.recall(kind):.5f} precision {score.precision(kind):.5f} of {there}")
    for kind in sorted(MAKERS):
        print("\n".join([e for e in score.examples if f" {kind}:" in e][:8]))


if __name__ == "__main__":
    main()

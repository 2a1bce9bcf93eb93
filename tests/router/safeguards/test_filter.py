"""Redaction: what is found, what is not, and that no way of cutting a stream changes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.router.errors import ContentError
from shoal.router.safeguards.detect import KINDS, detectors_of, find, iban, luhn
from shoal.router.safeguards.filter import Filter, Rules

ALL = sorted(KINDS)
SECRETS = {
    "email": ["jo.doe+x@mail.example.org", "a@b.co"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "FR1420041010050500013M02606"],
    "ssn": ["536-90-4399"],
    "ip": ["192.168.10.254", "2001:db8::8a2e:370:7334"],
    "phone": ["+49 30 901820", "(212) 555-2368", "+1-202-456-1111"],
    "key": [
        "sk-" + "a1B2" * 10,
        "ghp_" + "x" * 36,
        "AKIAIOSFODNN7EXAMPLE",
        "shk_abcdefghijkl_" + "Z" * 43,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nabc+/=\n-----END RSA PRIVATE KEY-----",
    ],
}
HARMLESS = [
    "In 1984 there were 3 of 12, or 25.5 %.", "Version 1.2.3 of 2024-01-31 10:30:00 costs 1,234,567.89.",
    "4111 1111 1111 1112 is no card", "The ratio 3:2:1 and the time 12:34", "x = a[1] + b(2) - 3 / 4", "I AM OK",
    "DE and GB are codes", "-----BEGIN CERTIFICATE-----", "e-mail me @ home", "sk-short", "", "\n\n", " - ",
]  # fmt: skip

TEXTS = st.lists(
    st.sampled_from([secret for kind in SECRETS.values() for secret in kind] + HARMLESS), min_size=1, max_size=8
).flatmap(lambda parts: st.sampled_from([" ", ", ", "\n", " and ", ". ", " - "]).map(lambda glue: glue.join(parts)))


def redacted(text: str) -> str:
    """By the places that are found in the whole, without any stream."""
    out, at = "", 0
    for match in find(text, detectors_of(ALL)):
        out += text[at : match.start] + f"[{match.kind}]"
        at = match.end
    return out + text[at:]


@pytest.mark.parametrize(("kind", "secret"), [(kind, s) for kind, secrets in SECRETS.items() for s in secrets])
def test_what_is_one_is_found(kind: str, secret: str) -> None:
    """In the middle of a sentence, at its beginning and at its end."""
    for before, after in (("Mine is ", " since May."), ("", " it is"), ("It is ", ""), ("(", ")"), ("is: ", ", or so")):
        assert redacted(f"{before}{secret}{after}") == f"{before}[{kind}]{after}"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none_is_left(text: str) -> None:
    """Numbers, versions, times, words."""
    assert redacted(text) == text


@settings(max_examples=100)
@given(TEXTS, st.randoms(use_true_random=False))
def test_any_cut_of_a_stream_gives_what_the_whole_gives(text: str, draw: random.Random) -> None:
    """Also one character at a time; and nothing that was given out is ever part of a secret."""
    for sizes in ((1, 1), (1, 3), (1, 40), (200, 400)):
        stream, out, at = Filter(Rules(ALL, ()), "the answer"), "", 0
        while at < len(text):
            size = draw.randint(*sizes)
            out += stream.push(text[at : at + size])
            at += size
        assert redacted(text) == out + stream.finish()


@given(st.text(alphabet="1234567890 -ABDE.@:+()/\nabc", max_size=300), st.integers(1, 7))
def test_any_text_is_cut_like_the_whole(text: str, size: int) -> None:
    """Whatever noise: a stream and the whole agree."""
    stream = Filter(Rules(ALL, ()), "the answer")
    out = "".join(stream.push(text[i : i + size]) for i in range(0, len(text), size)) + stream.finish()
    assert redacted(text) == out


def test_prose_is_not_held_back() -> None:
    """A reader of plain words waits for one word at most."""
    stream, held = Filter(Rules(ALL, ()), "the answer"), 0
    text = "The quick brown fox jumps over 13 lazy dogs, and nobody minds. " * 20
    given_out = 0
    for character in text:
        given_out += len(stream.push(character))
        held = max(held, len(text[: text.index(character)]) * 0)
    assert len(text) - given_out <= 8


@pytest.mark.parametrize(("kind", "check"), [("card", luhn), ("iban", iban)])
def test_checksums_decide(kind: str, check: object) -> None:
    """Of numbers with one digit changed none is taken for one; all that fit are found."""
    draw, right, wrong = random.Random(5), 0, 0
    for _ in range(1000):
        secret = draw.choice(SECRETS[kind])
        at = draw.choice([i for i, c in enumerate(secret) if c.isdigit() and i > 3])
        changed = secret[:at] + draw.choice([d for d in "0123456789" if d != secret[at]]) + secret[at + 1 :]
        right += redacted(f"pay {secret} now") == f"pay [{kind}] now"
        wrong += f"[{kind}]" in redacted(f"pay {changed} now")

    assert right == 1000
    assert wrong == 0


def test_denied_phrases_never_leave() -> None:
    """Whatever their case and blanks, in a stream before their first letter."""
    rules = Rules((), ("Project Kraken", "verboten"))
    for text in ("about project  kraken now", "VERBOTEN", "x Project\nKraken"):
        stream, out = Filter(rules, "the answer"), ""
        with pytest.raises(ContentError, match="the answer"):
            out = _streamed(stream, text)
        assert "kraken" not in out.lower()
    assert rules.whole("projects and krakens, unverboten", "x") == "projects and krakens, unverboten"


def _streamed(stream: Filter, text: str) -> str:
    out = ""
    for character in text:
        out += stream.push(character)
        assert "roject" not in out
        assert "erboten" not in out.lower()
    return out + stream.finish()


def test_long_text_without_blanks_is_bounded() -> None:
    """A megabyte of one word does not pile up, and ends as it was."""
    stream, text = Filter(Rules(ALL, ()), "the answer"), "ab1_" * 5_000
    out, most = "", 0
    for i in range(0, len(text), 500):
        out += stream.push(text[i : i + 500])
        most = max(most, len(stream._text))
    assert out + stream.finish() == text
    assert most < 4_000

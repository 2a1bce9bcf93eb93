"""Redaction: what is found, what is not, and that no way of cutting a stream changes it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.router.errors import ContentError
from shoal.router.safeguards.detect import KINDS, Detector, Found, detectors_of, find
from shoal.router.safeguards.filter import Filter, Rules
from shoal.router.safeguards.folding import flat, folded
from tests.router.safeguards.corpus import CHECKED, MAKERS, sample, scored

ALL = sorted(KINDS)
EVERYTHING = Rules(ALL, ())
CORPUS = scored(4_000, seed=1)
SECRETS = {
    "email": ["jo.doe+x@mail.example.org", "a@b.co"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "FR1420041010050500013M02606"],
    "ssn": ["536-90-4399"],
    "ip": ["192.168.10.254", "2001:db8::8a2e:370:7334", "::ffff:192.168.10.2"],
    "phone": ["+49 30 901820", "(212) 555-2368", "+1-202-456-1111"],
    "key": [
        "sk-" + "a1B2" * 10,
        "ghp_" + "x" * 36,
        "AKIAIOSFODNN7EXAMPLE",
        "shk_abcdefghijkl_" + "Z" * 43,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nabc+/=\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\\n" + "MIIEpAIBAAKCAQEA7/+abc\\n" * 200 + "-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,C0FFEE\n\nMIIE+/=\n"
        "-----END RSA PRIVATE KEY-----",
    ],
}
HARMLESS = [
    "In 1984 there were 3 of 12, or 25.5 %.", "Version 1.2.3 of 2024-01-31 10:30:00 costs 1,234,567.89.",
    "4111 1111 1111 1112 is no card", "The ratio 3:2:1 and the time 12:34", "x = a[1] + b(2) - 3 / 4", "I AM OK",
    "DE and GB are codes", "-----BEGIN CERTIFICATE-----", "e-mail me @ home", "sk-short", "", "\n\n", " - ",
    "x :: Int -> std::vector<a::b> ::1",
]  # fmt: skip

TEXTS = st.lists(
    st.sampled_from([secret for kind in SECRETS.values() for secret in kind] + HARMLESS), min_size=1, max_size=8
).flatmap(lambda parts: st.sampled_from([" ", ", ", "\n", " and ", ". ", " - "]).map(lambda glue: glue.join(parts)))


def redacted(text: str) -> str:
    """By the places that are found in the whole, without any stream."""
    out, at = "", 0
    for match in find(flat(text), detectors_of(ALL)):
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


def streamed(text: str, sizes: Iterable[int], rules: Rules = EVERYTHING) -> str:
    """In pieces of these sizes; the rest as one."""
    stream, out, at = Filter(rules, "the answer"), "", 0
    for size in sizes:
        out += stream.push(text[at : at + size])
        at += size
    return out + stream.push(text[at:]) + stream.finish()


@settings(max_examples=150)
@given(st.text(alphabet="1234567890 -ABDE.@:+()/\nabc", max_size=300), st.lists(st.integers(1, 9)))
def test_any_text_is_cut_like_the_whole(text: str, sizes: list[int]) -> None:
    """Whatever noise: a stream and the whole agree."""
    assert redacted(text) == streamed(text, sizes)


NOISE = (
    "12345678 ", "4", "4111 1111 1111 1111 ", "a1b2.", "x@", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----",
    "Ab/+=\n", "--", "DE89 3704 ", "0044 0532 0130 00", "(212) ", "::", "ff:", "番号", "sk-", "eyJ", ".", "the ", "A ",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NOISE), st.integers(1, 400)), max_size=8), st.integers(1, 700))
def test_runs_longer_than_anything_in_them_are_cut_like_the_whole(parts: list[tuple[str, int]], size: int) -> None:
    """Thousands of digits, capitals, word characters, lines of a key: what is let go of before the run ends is as if it
    had been seen whole."""
    text = "".join(part * min(count, 6000 // len(part)) for part, count in parts)
    assert redacted(text) == streamed(text, itertools.repeat(size, len(text) // size))


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_what_is_personal_is_found_in_a_labelled_corpus(kind: str) -> None:
    """At its very place, among decoys; kinds with check digits are hardly ever found where there is none."""
    assert CORPUS.recall(kind) >= 0.99
    assert CORPUS.precision(kind) >= (0.98 if kind in CHECKED else 0.95)


def test_a_corpus_in_pieces_is_redacted_like_the_whole() -> None:
    """Its texts one behind the other, four characters at a time."""
    draw = random.Random(2)
    text = "".join(sample(draw).text for _ in range(300))
    assert redacted(text) == streamed(text, itertools.repeat(4, len(text) // 4))


@pytest.mark.parametrize(
    "text",
    [
        "plain words without anything " * 400, "ab1_" * 4_000, "4111 " * 3_000, "CAPITALS AND 12 " * 800, "-" * 12_000,
        "a:b::c@d.e " * 1_500, "-----BEGIN PRIVATE KEY-----\n" + "Ab/+\n" * 4_000, "日本語のテキスト" * 1_500,
    ],
)  # fmt: skip
def test_each_character_is_looked_at_a_few_times(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at a time, whatever the text: the work grows with its length, not with what is held back."""
    looked = 0

    def counted(text: str, detectors: Sequence[Detector], begin: int, end: int) -> Iterator[Found]:
        nonlocal looked
        looked += len(text) - begin
        return find(text, detectors, begin, end)

    monkeypatch.setattr("shoal.router.safeguards.filter.find", counted)
    assert streamed(text, itertools.repeat(4, len(text) // 4)) == redacted(text)
    assert looked <= 4 * len(text)


def test_prose_is_not_held_back() -> None:
    """A reader of plain words waits for one word at most."""
    stream, held = Filter(Rules(ALL, ()), "the answer"), 0
    text = "The quick brown fox jumps over 13 lazy dogs, and nobody minds. " * 20
    given_out = 0
    for character in text:
        given_out += len(stream.push(character))
        held = max(held, len(text[: text.index(character)]) * 0)
    assert len(text) - given_out <= 8


@pytest.mark.parametrize("kind", ["card", "iban"])
def test_checksums_decide(kind: str) -> None:
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


def given_out(rules: Rules, text: str, step: int) -> str:
    """Of a stream that is refused, until then."""
    stream, out = Filter(rules, "the answer"), ""
    try:
        for at in range(0, len(text), step):
            out += stream.push(text[at : at + step])
        stream.finish()
    except ContentError:
        return out
    raise AssertionError("nothing was denied")


@pytest.mark.parametrize(
    "written",
    [
        "KRÅKEN", "kra\u200bken", "k\u00adr\u00ada\u00adk\u00ade\u00adn", "Кrаkеn", "ｋｒａｋｅｎ", "𝐤𝐫𝐚𝐤𝐞𝐧", "ⓚⓡⓐⓚⓔⓝ",
        "krake\u0301n", "k\u0336r\u0336a\u0336k\u0336e\u0336n", "_Kraken_", "kraK\u2060en", "κrακεn", "\u202ekraken",
    ],
)  # fmt: skip
def test_a_denied_word_is_known_however_it_is_written(written: str) -> None:
    """Invisible characters, accents, widths, other alphabets: in the whole, and in a stream before its first letter."""
    rules = Rules((), ("kraken",))
    with pytest.raises(ContentError):
        rules.whole(f"über {written} ü", "x")
    assert not set(folded(given_out(rules, f"über {written} und so weiter ", 1))) & set("kan")


@pytest.mark.parametrize("phrase", ["projekt  krake", "Projekt\u00a0Krake", "projekt-krake", "projekt\u2011krake"])
def test_whatever_is_between_the_words_of_a_phrase(phrase: str) -> None:
    """Blanks and dashes of any kind."""
    with pytest.raises(ContentError):
        Rules((), ("Projekt Krake",)).whole(f"das {phrase} ist", "x")


@pytest.mark.parametrize("step", [1, 7])
def test_a_flood_of_invisible_characters_is_denied(step: int) -> None:
    """A word cannot be parted by so many of them that its beginning is given out before its end comes."""
    text = "the krak" + "\u200b" * 9_000 + "en here"
    assert "k" not in given_out(Rules((), ("kraken",)), text, step)


@pytest.mark.parametrize(
    "text", ["ein Oktopus", "krakenähnlich", "Кракатау", "👩\u200d👩\u200d👧\u200d👦 familie", "日本語 kra ken"]
)
def test_words_that_are_not_denied_pass(text: str) -> None:
    """As they are, in the whole and in a stream."""
    rules = Rules((), ("kraken",))
    assert rules.whole(text, "x") == text == _streamed(Filter(rules, "x"), text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pay 4111\u202f1111\u202f1111\u202f1111 now", "pay [card] now"),
        ("pay 4111\u20111111\u20111111\u20111111 now", "pay [card] now"),
        ("pay ４１１１１１１１１１１１１１１１ now", "pay [card] now"),
        ("call +49\u00a030\u00a0901820, ja", "call [phone], ja"),
        ("an jo＠example.org, ja", "an [email], ja"),
        ("IBAN DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000, ja", "IBAN [iban], ja"),
    ],
)
def test_blanks_dashes_and_digits_of_any_kind_count(text: str, expected: str) -> None:
    """As models write them in numbers: what is found does not depend on it, what is left stays as it was."""
    for size in (1, 4, 100):
        assert streamed(text, itertools.repeat(size, len(text) // size)) == expected
    assert redacted(text) == expected


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

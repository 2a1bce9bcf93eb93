"""Finding personal data and secrets in text. Pure; patterns with checksums, and phone numbers by `phonenumbers`.

Every pattern is bounded in length, and says what a beginning of it at the end of a text looks like: that is what a
stream must hold back.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers

LONGEST = 2048
"""Characters of the longest match."""


@dataclass(frozen=True, slots=True)
class Found:
    """A match, by its place in the text."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Detector:
    """One kind of data."""

    kind: str
    pattern: re.Pattern[str]
    begun: Callable[[str], int]
    """Where in a text its end begins that may be the beginning of a match; its length when there is none."""
    valid: Callable[[str], bool] = lambda text: True


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


def luhn(text: str) -> bool:
    """Whether a card number's check digit fits.

    >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(d) for d in _digits(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SD": 18,
    "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22,
    "VG": 24, "XK": 20,
}  # fmt: skip


def iban(text: str) -> bool:
    """Whether an account number has its country's length and the right check digits.

    >>> iban("DE89 3704 0044 0532 0130 00"), iban("DE88 3704 0044 0532 0130 00")
    (True, False)
    """
    plain = text.replace(" ", "")
    if _IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _ssn(text: str) -> bool:
    area, group, serial = re.split(r"[- ]", text)
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1024)
def _phone(text: str) -> bool:
    if not 7 <= len(_digits(text)) <= 15 or re.match(r"(?:19|20)\d\d-\d\d-\d\d", text):  # a date
        return False
    try:
        number = phonenumbers.parse(text, None if text.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(number)


def _run(text: str, holds: Callable[[str], bool]) -> int:
    """Where the run of such characters begins that ends the text; no further back than a match is long."""
    at, least = len(text), max(0, len(text) - LONGEST)
    while at > least and holds(text[at - 1]):
        at -= 1
    return at


def _word(text: str) -> int:
    """What has no blanks may go on while no blank came."""
    return _run(text, lambda c: not c.isspace())


def _groups(text: str) -> int:
    """What is made of digits in groups may go on while nothing else came."""
    begins = _run(text, lambda c: c in "0123456789 ().-/+")
    match = re.compile(r"[\d(+]").search(text, begins)
    return len(text) if match is None else match.start()


def _account(text: str) -> int:
    """The same for capitals and digits, from where two capitals and two digits are or may come."""
    begins = _run(text, lambda c: c in "0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    match = re.compile(r"(?<![A-Za-z0-9])[A-Z](?:[A-Z](?:\d\d|\d?\Z)|\Z)").search(text, begins)
    return len(text) if match is None else match.start()


def _ending(pattern: str, window: int) -> Callable[[str], int]:
    """By a pattern, at most `window` characters long."""
    compiled = re.compile(rf"(?:{pattern})\Z")

    def begins(text: str) -> int:
        match = compiled.search(text, max(0, len(text) - window))
        return len(text) if match is None else match.start()

    return begins


def _ascii(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


_ALL = (
    Detector(
        "email",
        _ascii(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
        _word,
    ),
    Detector(
        "key",
        _ascii(
            r"(?<![\w-])(?:shk_[a-z2-7]{12}_[\w-]{43}|sk-[\w-]{20,200}|gh[pousr]_\w{30,255}|github_pat_\w{20,255}"
            r"|xox[abprs]-[\w-]{10,250}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,80}"
            r"|eyJ[\w-]{8,600}\.[\w-]{8,1000}\.[\w-]{8,400})(?![\w-])"
        ),
        _word,
    ),
    Detector(
        "key",
        _ascii(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,1900}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
        ),
        _ending(
            r"-{1,5}(?:B|BE|BEG|BEGI|BEGIN[A-Z ]{0,41}-{0,5})?"
            r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,1900}(?:-{1,5}[A-Z ]{0,45}-{0,5})?",
            LONGEST,
        ),
    ),
    Detector(
        "iban",
        _ascii(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])"),
        _account,
        iban,
    ),
    Detector("card", _ascii(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d])"), _groups, luhn),
    Detector("ssn", _ascii(r"(?<![\d-])\d{3}([- ])\d{2}\1\d{4}(?![\d-])"), _groups, _ssn),
    Detector(
        "ip",
        _ascii(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"),
        _word,
        _address,
    ),
    Detector(
        "phone",
        _ascii(r"(?<![\w.\-/+])(?:\+|\()?\d(?:[ ().\-/]{0,2}\d){6,14}(?![\w])"),
        _groups,
        _phone,
    ),
)

KINDS = frozenset(detector.kind for detector in _ALL)
"""What can be looked for."""


def detectors_of(kinds: Sequence[str]) -> tuple[Detector, ...]:
    """Those of some kinds; a kind that is none is an error of ours."""
    assert set(kinds) <= KINDS, f"{set(kinds) - KINDS} are no kinds"
    return tuple(detector for detector in _ALL if detector.kind in kinds)


def phrases(words: Sequence[str]) -> tuple[Detector, ...]:
    """One for words and phrases that are denied, whatever their case and the blanks between their words."""
    if not words:
        return ()
    each = sorted({r"\s{1,4}".join(re.escape(part) for part in word.split()) for word in words}, key=len, reverse=True)
    longest = max(len(word) + 4 * len(word.split()) for word in words)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)", re.IGNORECASE)
    return (Detector("denied", pattern, lambda text: max(0, len(text) - longest)),)


def find(text: str, detectors: Sequence[Detector], begin: int = 0) -> list[Found]:
    """Matches from `begin` on, in order, none over another: what begins first counts, then what is longer."""
    found = sorted(_matches(text, detectors, begin), key=lambda f: (f.start, -f.end))
    kept: list[Found] = []
    for match in found:
        if not kept or match.start >= kept[-1].end:
            kept.append(match)
    return kept


def _matches(text: str, detectors: Sequence[Detector], begin: int) -> Iterator[Found]:
    for detector in detectors:
        for match in detector.pattern.finditer(text, begin):
            if detector.valid(match[0]):
                yield Found(match.start(), match.end(), detector.kind)


def begun(text: str, detectors: Sequence[Detector]) -> int:
    """Where the earliest beginning of a match starts that the end of the text may be; its length when none is."""
    return min((detector.begun(text) for detector in detectors), default=len(text))

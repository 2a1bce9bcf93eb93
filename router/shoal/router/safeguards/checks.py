"""Whether what looks like a number of some kind is one, and how much of it: by check digits, lengths, and ranges.

Each takes a match of its pattern, which is greedy, and says where the real one ends, or None. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import phonenumbers

_PHONE_TRIES = 3  # ends of a long run of digits that are tried, each costs tens of microseconds


def whole(match: re.Match[str]) -> int | None:
    """All of it."""
    return match.end()


def luhn(digits: str) -> bool:
    """Whether a number's check digit fits.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    even, odd = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, even)) + sum(sum(divmod(2 * int(d), 10)) for d in odd)) % 10 == 0


_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:2(?:2[1-9]|[3-9])|[3-6]|7(?:[01]|20))"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"3(?:0[0-5]|09|[689])"), (14, 16, 19)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),
    (re.compile(r"62|81"), (16, 17, 18, 19)),
    (re.compile(r"6(?:011|4[4-9]|5|0|52)|82|508"), (16, 19)),
    (re.compile(r"220[0-4]"), (16, 19)),
    (re.compile(r"9792"), (16,)),
    (re.compile(r"50|5[6-8]|6[1-9]"), (13, 14, 15, 16, 17, 18, 19)),
)
"""How card numbers begin, and how long they are: Visa, Mastercard, American Express, Diners Club, JCB, UnionPay and
RuPay, Discover and RuPay, Mir, Troy, Maestro."""
_GROUPS = frozenset(
    (
        (4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 4, 4, 4, 2), (4, 4, 4, 4, 1), (4, 6, 5), (4, 6, 4), (4, 4, 4, 3), (6, 13),
        (4, 4, 4, 1),
    )
)  # fmt: skip
"""How the digits of cards are written in groups."""
_MOST_GROUPS = max(map(len, _GROUPS))
_LIKELY_CARD = re.compile("|".join(f"(?:{begins.pattern})" for begins, _ in _ISSUERS))
_GROUP = re.compile(r"\d+")
_PARTS = str.maketrans("", "", " ().-/+")
_NO_DIGITS = str.maketrans("", "", "0123456789")


def card(match: re.Match[str]) -> int | None:
    """The longest beginning of it, in whole groups, that is a card's number."""
    text = match[0]
    if not _LIKELY_CARD.match(text.translate(_PARTS)):
        return None
    groups = _GROUP.findall(text)
    for count in range(min(len(groups), _MOST_GROUPS), 0, -1):
        if count > 1 and tuple(map(len, groups[:count])) not in _GROUPS:
            continue
        end = sum(map(len, groups[:count])) + count - 1
        alike = count == 1 or len(set(text[:end].translate(_NO_DIGITS))) == 1
        if alike and _is_card("".join(groups[:count])):
            return match.start() + end
    return None


def _is_card(digits: str) -> bool:
    known = any(len(digits) in lengths and begins.match(digits) for begins, lengths in _ISSUERS)
    return known and len(set(digits)) > 1 and luhn(digits)


_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip
IBAN_LONGEST = max(_IBAN_LENGTHS.values())


def iban(match: re.Match[str]) -> int | None:
    """Where an account number of its country's length ends, if its check digits fit and nothing goes on there."""
    text, length = match[0], _IBAN_LENGTHS.get(match[0][:2], 0)
    ends = [i + 1 for i, c in enumerate(text) if c not in " -"]
    if not length or len(ends) < length:
        return None
    plain = text[: ends[length - 1]].replace(" ", "").replace("-", "")
    after = match.string[match.start() + ends[length - 1] :][:1]
    if (after.isascii() and after.isalnum()) or int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 != 1:
        return None
    return match.start() + ends[length - 1]


def ssn(match: re.Match[str]) -> int | None:
    """All of it, if such a number is given out."""
    area, group, serial = match[0][:3], match[0][4:6], match[0][7:]
    given = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return match.end() if given else None


def address(match: re.Match[str]) -> int | None:
    """All of it but a colon of the sentence, if it is an IP address; not the shortest of IPv6, such as `::1`, which is
    nobody's."""
    text = match[0][:-1] if match[0].endswith(":") and not match[0].endswith("::") else match[0]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return match.start() + len(text) if "." in text or len(text.replace(":", "")) >= 3 else None


_AMERICAN = re.compile(r"(?:1[ .\-/]?)?(?:\([2-9]\d\d\)|[2-9]\d\d)[ .\-/]{0,2}[2-9]\d\d[ .\-/]?\d{4}(?!\d)")


def phone(match: re.Match[str]) -> int | None:
    """As much of it as is a number that somebody may have, by `phonenumbers`: American, or with a country's code and
    then as long as possible, in whole groups."""
    text, tries = match[0], _PHONE_TRIES
    if (american := _AMERICAN.match(text)) is not None:
        return match.start() + american.end() if _is_phone(american[0]) else None
    if not text.startswith("+") and not text.translate(_PARTS).startswith("011"):
        return None
    for end in reversed([found.end() for found in _GROUP.finditer(text)][-12:]):
        if len(text[:end].translate(_PARTS)) < 7 or not tries:
            break
        if _is_phone(text[:end]):
            return match.start() + end
        tries -= 1
    return None


@lru_cache(maxsize=4096)
def _is_phone(text: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, None if text.startswith("+") else "US"))
    except phonenumbers.NumberParseException:
        return False

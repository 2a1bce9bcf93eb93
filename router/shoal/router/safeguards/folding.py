"""What looks the same, written the same. Pure.

`flat` keeps every character at its place: numbers, addresses and keys are looked for in it. `folded` does not: words
are looked for in it, whatever their case, accents and width, with invisible characters between their letters, and with
letters of other alphabets that look like theirs.
"""

from __future__ import annotations

import re
import unicodedata

_SEEN = re.compile("[\u0300-\u036f\u20d0-\u20ff\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_ALIKE = str.maketrans(
    "авекмнорстухіјѕһԁԛԝӏαβεικορτυχıłøđħ",
    "abekmhopctyxijshdqwlabeikoptuxilodh",
)  # fmt: skip  # Cyrillic, Greek, and Latin letters that Unicode does not take apart
FLOOD = re.compile(
    "[\u00ad\u0300-\u036f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]{64}"
)
"""More characters in a row that cannot be seen than any writing has."""


class _Flat(dict[int, int]):
    """For str.translate; filled as characters come."""

    def __missing__(self, code: int) -> int:
        character = chr(code)
        if "\uff01" <= character <= "\uff5e":
            code_flat = code - 0xFEE0
        elif (kind := unicodedata.category(character)) == "Zs":
            code_flat = ord(" ")
        elif kind == "Nd":
            code_flat = ord("0") + unicodedata.decimal(character)
        elif kind == "Pd" or character in "\u2212\u2043":
            code_flat = ord("-")
        else:
            code_flat = {"\u2024": ord("."), "\ufe52": ord("."), "\ufe6b": ord("@")}.get(character, code)
        self[code] = code_flat
        return code_flat


class _Folded(dict[str, str]):
    """The same by character; it may become none, or several."""

    def __missing__(self, character: str) -> str:
        parts = unicodedata.normalize("NFKD", character).casefold()
        kept = (part for part in _SEEN.sub("", parts) if unicodedata.category(part) != "Cf")
        self[character] = found = "".join(kept).translate(_ALIKE)
        return found


_FLAT, _FOLDED = _Flat(), _Folded()


def flat(text: str) -> str:
    """With the blanks, dashes and digits of ASCII, each character where it was.

    >>> flat("４１１１\u202f1111\u20111111 ٣"), flat("日本 ü")
    ('4111 1111-1111 3', '日本 ü')
    """
    return text if text.isascii() else text.translate(_FLAT)


def folded(text: str) -> str:
    """As words are compared.

    >>> folded("KRÅ\u200bKEN"), folded("Кrаkеn"), folded("ｋｒａｋｅｎ"), folded("Straße")
    ('kraken', 'kraken', 'kraken', 'strasse')
    """
    return text.lower() if text.isascii() else "".join([_FOLDED[character] for character in text])


def placed(text: str, begin: int) -> tuple[str, list[int]]:
    """`folded` from `begin` on, and for each of its characters where it was."""
    out, places = [], list[int]()
    for place in range(begin, len(text)):
        out.append(found := _FOLDED[text[place]])
        places += [place] * len(found)
    return "".join(out), places


def begin_of_last(text: str, count: int, least: int) -> int:
    """Where the last `count` characters of the folded text begin, `least` at the earliest."""
    at, left = len(text), count
    while at > least and left > 0:
        at -= 1
        left -= len(_FOLDED[text[at]])
    return at

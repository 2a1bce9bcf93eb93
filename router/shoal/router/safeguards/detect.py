"""Finding personal data and secrets in text. Pure; patterns, and `checks.py` for what has check digits.

Whether a match begins at a place depends on that place, a few characters before it and a bounded stretch behind it, and
never on where the search began. So a stream that is searched piece by piece has the matches of the whole, as long as
no place is judged before enough came after it: `Detector.run` says from where on that is so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shoal.router.safeguards import checks
from shoal.router.safeguards.folding import FLOOD, begin_of_last, flat, folded, placed


@dataclass(frozen=True, slots=True)
class Found:
    """A match, by its place in the text."""

    start: int
    end: int
    kind: str


class Run:
    """The stretch at the end of a text that something may go on with."""

    def __init__(self, characters: str, longest: int, begins: str = "") -> None:
        """`characters`: what it is made of; `longest`: a match is never longer, so what is further back is settled;
        `begins`: what a match begins with, or at the end of the text may begin with; any character if empty."""
        self.characters, self.longest = characters, longest
        self.leaves = re.compile(f"[^{re.escape(characters)}]" if characters else "")
        """Whether a piece of text ends the run."""
        self._begins = re.compile(begins, re.ASCII) if begins else None

    def open_at(self, text: str, done: int) -> int:
        """Where it begins, at `done` at the earliest; the text's length when there is none."""
        least = max(done, len(text) - self.longest)
        at = least + len(text[least:].rstrip(self.characters))
        if self._begins is None or at == len(text):
            return at
        match = self._begins.search(text, at)
        return len(text) if match is None else match.start()


class Window(Run):
    """One of any characters, counted as `folding.folded` has them."""

    def __init__(self, longest: int) -> None:
        """`longest`: what is further back is settled."""
        super().__init__("", longest)

    def open_at(self, text: str, done: int) -> int:
        """See `Run`."""
        least = max(done, len(text) - self.longest)
        if text[least:].isascii():
            return least
        return len(text) if FLOOD.search(text, done) else begin_of_last(text, self.longest, done)


@dataclass(frozen=True, slots=True)
class Detector:
    """One kind of data."""

    kind: str
    pattern: re.Pattern[str]
    run: Run
    """Of a text that may go on: where a match may begin that what follows would change."""
    end_of: Callable[[re.Match[str]], int | None] = checks.whole

    def first(self, text: str, at: int, least: int) -> Found | None:
        """The first match that begins at `at` or behind, and before `least`."""
        while (match := self.pattern.search(text, at)) is not None and match.start() < least:
            if (end := self.end_of(match)) is not None:
                return Found(match.start(), end, self.kind)
            at = match.start() + 1
        return None


@dataclass(frozen=True, slots=True)
class Denied(Detector):
    """Words, however they are written; and what hides them, a flood of characters that cannot be seen."""

    def first(self, text: str, at: int, least: int) -> Found | None:
        """See `Detector`."""
        if text.isascii():
            return super(Denied, self).first(text, at, least)
        begin = max(0, at - CONTEXT)
        words, places = placed(text, begin)
        found = next((m for m in self.pattern.finditer(words) if places[m.start()] >= at), None)
        if FLOOD.search(text, at):
            return Found(at, at + 1, self.kind)
        if found is None or (start := places[found.start()]) >= least:
            return None
        return Found(start, start + 1, self.kind)


_UPPER, _DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
_WORD = Run(f"{_UPPER}{_UPPER.lower()}{_DIGITS}_.+%@:-", 2_048)
"""What mail addresses, keys and IP addresses are made of."""
_NUMBER = Run(f"{_DIGITS} ().-/+", 64, r"[\d(+]")
_ACCOUNT = Run(f"{_UPPER}{_DIGITS} -", 2 * checks.IBAN_LONGEST + 2, r"(?<![A-Za-z0-9])[A-Z](?:[A-Z](?:\d\d|\d?\Z)|\Z)")
_PEM_LONGEST = 16_384
_PEM_BODY = rf"(?:[A-Za-z0-9+/=\s\\:,]|-(?!-)){{0,{_PEM_LONGEST}}}"
_PEM = Run(
    f"{_UPPER}{_UPPER.lower()}{_DIGITS}+/=\\:,- \t\n\r\v\f",
    _PEM_LONGEST + 256,
    r"(?:-{1,5}|-----B|-----BE|-----BEG|-----BEGI|-----BEGIN[A-Z ]{0,43}-{0,4}"
    rf"|-----BEGIN [A-Z ]{{0,30}}PRIVATE KEY-----{_PEM_BODY}(?:-{{1,5}}[A-Z ]{{0,45}}-{{0,5}})?)\Z",
)
CONTEXT = 10
"""Characters before a place that decide whether a match begins there."""
PLAIN = Run(_WORD.characters + "(", _WORD.longest)
"""What of a plain text something may go on with, see `TELLING`."""


def _ascii(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


# Not from the middle of a longer number in groups, nor of an account's.
_NOT_INSIDE = r"(?<!\d{4}[ -]\d{4}[ -])(?<![A-Z]{2}\d\d[ -])(?<![A-Z]{2}\d\d[ -]\d{4}[ -])"
_ALL = (
    Detector(
        "email",
        _ascii(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
        _WORD,
    ),
    Detector(
        "key",
        _ascii(
            r"(?<![\w-])(?:shk_[a-z2-7]{12}_[\w-]{43}|sk-[\w-]{20,200}|gh[pousr]_\w{30,255}|github_pat_\w{20,255}"
            r"|xox[abprs]-[\w-]{10,250}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,80}"
            r"|eyJ[\w-]{11,600}\.[\w-]{8,1000}\.[\w-]{8,400})(?![\w-])"
        ),
        _WORD,
    ),
    Detector(
        "key",
        _ascii(rf"-----BEGIN [A-Z ]{{0,30}}PRIVATE KEY-----{_PEM_BODY}(?:-----END [A-Z ]{{0,30}}PRIVATE KEY-----)?"),
        _PEM,
    ),
    Detector(
        "iban",
        _ascii(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}"),
        _ACCOUNT,
        checks.iban,
    ),
    Detector(
        "card",
        _ascii(rf"(?<!\w)(?<!\d\.){_NOT_INSIDE}\d(?:[ .-]?\d){{12,18}}(?![A-Za-z_]|\.?\d)"),
        _NUMBER,
        checks.card,
    ),
    Detector("ssn", _ascii(r"(?<![\d-])\d{3}([- ])\d{2}\1\d{4}(?![\d-])"), _NUMBER, checks.ssn),
    Detector(
        "ip",
        _ascii(
            r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"
            r"|(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?!\w|:[0-9A-Fa-f:]|\.\d))"
        ),
        _WORD,
        checks.address,
    ),
    Detector(
        "phone",
        _ascii(r"(?<![\w.\-/+])(?:\+|\()?\d(?:[ ().\-/]{0,2}\d){6,17}(?![\w])"),
        _NUMBER,
        checks.phone,
    ),
)

KINDS = frozenset(detector.kind for detector in _ALL)
"""What can be looked for."""

TELLING = _ascii(r"[0-9@]|:[0-9A-Fa-f:]|-----|[\w-]{14}")
"""Every match has this in it: text without it is plain, and no more is looked for."""


def detectors_of(kinds: Sequence[str]) -> tuple[Detector, ...]:
    """Those of some kinds; a kind that is none is an error of ours."""
    assert set(kinds) <= KINDS, f"{set(kinds) - KINDS} are no kinds"
    return tuple(detector for detector in _ALL if detector.kind in kinds)


def phrases(words: Sequence[str]) -> tuple[Detector, ...]:
    """One for words and phrases that are denied, however they are written, see `folding.folded`, and whatever blanks
    or dashes are between them."""
    if not words:
        return ()
    each = [[re.escape(folded(flat(part))) for part in word.split()] for word in words]
    joined = sorted({r"[\s_-]{1,4}".join(parts) for parts in each}, key=len, reverse=True)
    longest = max(len(folded(flat(word))) + 4 * len(word.split()) for word in words)
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(joined)})(?![^\W_])", re.IGNORECASE)
    return (Denied("denied", pattern, Window(longest + 1)),)


def find(text: str, detectors: Sequence[Detector], begin: int = 0, end: int | None = None) -> Iterator[Found]:
    """Matches that begin from `begin` to before `end`, in order, none over another: what begins first counts, then
    what is longer. `text` is as `folding.flat` has it."""
    least, at = len(text) if end is None else end, begin
    ahead = [(detector, detector.first(text, at, least)) for detector in detectors]
    while found := [(detector, match) for detector, match in ahead if match is not None]:
        best = min((match for _, match in found), key=lambda match: (match.start, -match.end))
        yield best
        at = best.end
        ahead = [(d, match if match.start >= at else d.first(text, at, least)) for d, match in found]

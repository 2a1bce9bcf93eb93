"""Redaction, of a text or of a stream of its pieces: the same result however it is cut."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.router.errors import ContentError
from shoal.router.safeguards.detect import Detector, begun, detectors_of, find, phrases

_CONTEXT = 64  # characters before a place that decide whether something begins there


class Rules:
    """What is taken out and what is refused."""

    def __init__(self, redact: Sequence[str], deny: Sequence[str]) -> None:
        """`redact`: kinds of data; `deny`: words and phrases."""
        self.detectors: tuple[Detector, ...] = (*detectors_of(redact), *phrases(deny))

    def __bool__(self) -> bool:
        return bool(self.detectors)

    def whole(self, text: str, where: str) -> str:
        """The text without what may not be in it. Raises ContentError for what is denied; `where`: told then."""
        stream = Filter(self, where)
        stream.hold(text)
        return stream.finish()


class Filter:
    """One stream of text. What may be the beginning of something is held back until it is known."""

    def __init__(self, rules: Rules, where: str) -> None:
        self._rules, self._where = rules, where
        self._text = ""
        self._done = 0  # in _text: what was given out
        self.found = 0
        """What was taken out so far."""

    def push(self, piece: str) -> str:
        """What is now known to be clean. Raises ContentError before anything denied is given out."""
        self._text += piece
        return self._give(max(self._done, begun(self._text, self._rules.detectors)))

    def hold(self, piece: str) -> None:
        """Give nothing out yet."""
        self._text += piece

    def finish(self) -> str:
        """The rest."""
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        out, at, until = [], self._done, end
        if at == end:
            return ""
        for match in find(self._text, self._rules.detectors, self._done):
            if match.kind == "denied":
                raise ContentError(f"{self._where} has words that are not allowed here")
            if match.end > end:
                until = min(until, match.start)  # whole or not at all
                break
            out += [self._text[at : match.start], f"[{match.kind}]"]
            at = match.end
            self.found += 1
        until = max(until, at)
        out.append(self._text[at:until])
        cut = max(0, until - _CONTEXT)
        self._text, self._done = self._text[cut:], until - cut
        return "".join(out)

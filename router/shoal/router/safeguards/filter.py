"""Redaction, of a text or of a stream of its pieces: the same result however it is cut."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.router.errors import ContentError
from shoal.router.safeguards.detect import CONTEXT, PLAIN, TELLING, Detector, Run, detectors_of, find, phrases
from shoal.router.safeguards.folding import flat


class Rules:
    """What is taken out and what is refused."""

    def __init__(self, redact: Sequence[str], deny: Sequence[str]) -> None:
        """`redact`: kinds of data; `deny`: words and phrases."""
        self.denied = phrases(deny)
        self.detectors: tuple[Detector, ...] = (*detectors_of(redact), *self.denied)
        self.runs = tuple(dict.fromkeys(detector.run for detector in self.detectors))
        """What a text may end with that something goes on from."""
        self.plain_runs = (PLAIN, *(detector.run for detector in self.denied))
        """The same for a text that has nothing telling in it."""

    def __bool__(self) -> bool:
        return bool(self.detectors)

    def whole(self, text: str, where: str) -> str:
        """The text without what may not be in it. Raises ContentError for what is denied; `where`: told then."""
        stream = Filter(self, where)
        stream.hold(text)
        return stream.finish()


class Filter:
    """One stream of text. What may be the beginning of something is held back until it is known.

    Most pieces are plain words, which cost a microsecond or two: they are kept until a blank ends the word, and looked
    at closer only when something telling is in them. A run that goes on is looked at once it is much longer than
    anything that could be in it, so each character is looked at a few times at most.
    """

    def __init__(self, rules: Rules, where: str) -> None:
        self._rules, self._where = rules, where
        self._text = self._flat = ""  # as it is, and as it is looked into, see `folding.flat`
        self._done = 0  # in _text: what was given out
        self._run: Run | None = None  # why the rest is held back
        self.found = 0
        """What was taken out so far."""

    def push(self, piece: str) -> str:
        """What is now known to be clean. Raises ContentError before anything denied is given out."""
        self._text += piece
        piece = flat(piece)
        self._flat = text = self._flat + piece
        run, done = self._run, self._done
        if run is not None and len(text) - done < 1.5 * run.longest and run.leaves.search(piece) is None:
            return ""
        plain = TELLING.search(text, done) is None
        end, self._run = len(text), None
        for run in self._rules.plain_runs if plain else self._rules.runs:
            if (begins := run.open_at(text, done)) < end:
                end, self._run = begins, run
        return self._give(end, self._rules.denied if plain else self._rules.detectors)

    def hold(self, piece: str) -> None:
        """Give nothing out yet."""
        self._text += piece
        self._flat += flat(piece)

    def finish(self) -> str:
        """The rest."""
        return self._give(len(self._text), self._rules.detectors)

    def _give(self, end: int, detectors: Sequence[Detector]) -> str:
        text, at = self._text, self._done
        if end <= at:
            return ""
        out = []
        for match in find(self._flat, detectors, at, end) if detectors else ():
            if match.kind == "denied":
                raise ContentError(f"{self._where} has words that are not allowed here")
            out += [text[at : match.start], f"[{match.kind}]"]
            at = match.end
            self.found += 1
        out.append(text[at:end])
        at = max(at, end)
        cut = max(0, at - CONTEXT)
        self._text, self._flat, self._done = text[cut:], self._flat[cut:], at - cut
        return "".join(out)

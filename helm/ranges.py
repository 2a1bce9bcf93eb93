"""What a setting may be, as JSON Schema: asked of the product's own dataclass, which says it when it refuses a value.

A dataclass is given a value that nothing allows; the words of its refusal ("must be 1 to 64", "one of a, b") become
keywords, and every bound is tried on it before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Refusal = Callable[[str, Any], str]
"""(key, value) -> what is wrong with it, empty when it is taken."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_AWAY = 10**15  # further than any setting reaches
_NONSENSE = "\x00"


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the settings, made of its dataclass with the keys that must be given."""

    name: str
    kind: type
    given: dict[str, Any]

    def refusal(self, key: str, value: Any) -> str:
        """What the dataclass says against one value whatever the others are."""
        try:
            self.kind(**{**self.given, key: value})
        except (AssertionError, TypeError):
            raise  # a mistake of ours
        except Exception as error:  # every section has an error of its own
            told = str(error)
            return told if told.startswith(f"{self.name}.{key} must be ") else ""
        return ""

    def range(self, key: str, kind: type) -> dict[str, Any]:
        """Keywords for a setting of this type; none where every value is taken."""
        if kind in (int, float):
            return self._numbers(key, kind)
        return self._words(key, self.refusal(key, _NONSENSE)) if kind is str else {}

    def items(self, key: str, kind: type) -> dict[str, Any]:
        """Keywords for the members of a list."""
        if kind is int:
            return {"minimum": 1} if self.refusal(key, (0,)) and not self.refusal(key, (1,)) else {}
        told = self.refusal(key, (_NONSENSE,))
        found = re.search(r"must be some of (.+), not ", told)
        if found:
            words = found[1].split(", ")
            assert not any(self.refusal(key, (word,)) for word in words), f"{self.name}.{key}: {told}"
            return {"enum": words}
        return {"pattern": r"\S"} if self.refusal(key, (" ",)) else {}

    def _numbers(self, key: str, kind: type) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for told in (self.refusal(key, kind(-_AWAY)), self.refusal(key, kind(_AWAY))):
            if found := re.search(rf"must be {_NUMBER} to {_NUMBER}", told):
                made |= {"minimum": kind(found[1]), "maximum": kind(found[2])}
            elif found := re.search(rf"between {_NUMBER} and {_NUMBER}", told):
                made |= {"exclusiveMinimum": kind(found[1]), "exclusiveMaximum": kind(found[2])}
            elif found := re.search(rf"(?:at least {_NUMBER}|{_NUMBER} or more)", told):
                made |= {"minimum": kind(found[1] or found[2])}
            elif found := re.search(rf"above {_NUMBER}", told):
                made |= {"exclusiveMinimum": kind(found[1])}
            if found := re.search(rf"at most {_NUMBER}", told):
                made |= {"maximum": kind(found[1])}
        for keyword, bound in made.items():
            outside = {"minimum": bound - 1, "maximum": bound + 1}.get(keyword, bound)
            assert self.refusal(key, outside), f"{self.name}.{key}: {outside} is taken, against {keyword} {bound}"
            if keyword in ("minimum", "maximum"):
                assert not self.refusal(key, bound), f"{self.name}.{key}: {bound} is refused, against {keyword}"
        return made

    def _words(self, key: str, told: str) -> dict[str, Any]:
        found = re.search(r"must be (?:one of )?(.+), not ", told)
        if found is None:
            return {}
        words = [word.strip('"') for word in re.split(", | or ", found[1])]
        taken = all(" " not in word and not self.refusal(key, word) for word in words)
        return {"enum": words} if taken and len(words) > 1 else {}

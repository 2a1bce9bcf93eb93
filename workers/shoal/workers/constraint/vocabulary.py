"""The vocabulary as constraints see it: which tokens are text, and which tokens spell given bytes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import llguidance
import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Token ids, ascending and distinct."""


class Vocabulary:
    """Immutable; shared by all threads. Tokens without bytes are control tokens or unused: never text."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.size = len(token_bytes)
        self._token_bytes = token_bytes
        self.text_ids: Ids = np.array([i for i, text in enumerate(token_bytes) if text], dtype=np.int64)
        """Every token that stands for bytes."""
        self.other_ids: Ids = np.array([i for i, text in enumerate(token_bytes) if not text], dtype=np.int64)
        """All the others, which are few."""
        self._by_text: dict[bytes, list[int]] = {}
        for token in self.text_ids.tolist():
            self._by_text.setdefault(token_bytes[token], []).append(token)
        self._longest = max(map(len, self._by_text), default=0)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._building = threading.Lock()

    def text_of(self, token: int) -> bytes:
        """The token's bytes; none for a control token or an id that does not exist."""
        return self._token_bytes[token] if token < self.size else b""

    def beginning(self, text: bytes) -> list[int]:
        """The tokens whose bytes `text` begins with, in no order.

        >>> Vocabulary([b"a", b"b", b"ab", b"abc", b""]).beginning(b"abd")
        [0, 2]
        """
        found: list[int] = []
        for length in range(1, min(len(text), self._longest) + 1):
            found += self._by_text.get(text[:length], ())
        return found

    def spells(self, text: bytes) -> bool:
        """Whether tokens can spell every beginning of `text`, whichever way it was begun: each of its bytes is one."""
        return all(bytes((byte,)) in self._by_text for byte in text)

    @property
    def end(self) -> int:
        """An id one past the vocabulary: the grammar library's own sign that a text may end."""
        return self.size

    @property
    def tokenizer(self) -> llguidance.LLTokenizer:
        """The vocabulary as the grammar library takes it. Made once, about a second for 200,000 tokens."""
        with self._building:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Source(self)))
            return self._tokenizer


class _Source:
    """What `llguidance.TokenizerWrapper` asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end
        self.bos_token_id = None
        self.tokens = [*map(vocabulary.text_of, range(vocabulary.size)), b""]
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if not text]

    def __call__(self, text: bytes) -> list[int]:
        """Never needed: our grammars leave it to the model how a text is cut into tokens."""
        return []

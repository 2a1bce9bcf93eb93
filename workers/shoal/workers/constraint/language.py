"""Languages of bytes compiled for one vocabulary, and where a text stands in one."""

from __future__ import annotations

import threading
from collections import OrderedDict

import llguidance
import llguidance.numpy as bitmasks
import numpy as np

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.wire.grammars import compile_grammar, reason_of
from shoal.workers.constraint.vocabulary import Ids, Vocabulary
from shoal.workers.errors import ConstraintError


class Text:
    """A text of a language as far as it was generated. One thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def copy(self) -> Text:
        """Costs microseconds; what was learned about the language is shared."""
        return Text(self._matcher.deep_copy(), self._vocabulary)

    @property
    def complete(self) -> bool:
        """Whether it is a whole word of the language."""
        return self._matcher.is_accepting()

    def allowed(self) -> Ids:
        """The text tokens that may follow, none at a dead end. Raises ConstraintError when finding them costs more
        than it may."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return np.empty(0, dtype=np.int64)
        words = bitmasks.allocate_token_bitmask(1, self._vocabulary.size + 1)
        bitmasks.fill_next_token_bitmask(self._matcher, words)
        if self._matcher.is_error():
            if self._matcher.get_error().startswith("NoExtension"):
                return np.empty(0, dtype=np.int64)
            raise ConstraintError(f"the grammar costs too much here: {reason_of(self._matcher.get_error())}")
        bits = np.unpackbits(words.view(np.uint8)[0], bitorder="little")
        return np.flatnonzero(bits[: self._vocabulary.size].view(np.bool_))  # twenty times as fast as over integers

    def push(self, token: int) -> bool:
        """Take the next token; False when it is not allowed, and the text is as before."""
        return self._matcher.try_consume_tokens([token]) == 1


class Languages:
    """Compiles grammars for one vocabulary and keeps those used last. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, capacity: int) -> None:
        self.vocabulary = vocabulary
        self._capacity = capacity
        self._known: OrderedDict[tuple[int, str], Text] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, kind: pb.GrammarKind.ValueType, source: str) -> Text:
        """An empty text of the language. Raises GrammarError. May take a second: never on an engine's thread."""
        key = (int(kind), source)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key].copy()
        # Outside the lock: the library lets other threads run meanwhile.
        text = Text(compile_grammar(kind, source, self.vocabulary.tokenizer), self.vocabulary)
        with self._lock:
            self._known[key] = text
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return text.copy()

"""From a constraint as a router sent it to a cursor for one sequence. Compiles each constraint and grammar once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.workers.constraint.automaton import Automaton, read_automaton
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.constraint.language import Languages
from shoal.workers.constraint.vocabulary import Vocabulary
from shoal.workers.errors import RequestError

AUTOMATA, LANGUAGES = 128, 256
"""How many compiled constraints and grammars are kept."""


class ConstraintCompiler:
    """Thread-safe. `begin` may take a second for a large grammar: it is never called on an engine's thread."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._languages = Languages(Vocabulary(token_bytes), LANGUAGES)
        self._automata: OrderedDict[bytes, Automaton] = OrderedDict()
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Build what the first grammar would wait for."""
        _ = self._languages.vocabulary.tokenizer

    def begin(self, constraint: pb.Constraint, generated: Sequence[int] = ()) -> Cursor:
        """A cursor after the tokens that earlier attempts generated.

        Raises RequestError: the constraint is malformed, a grammar cannot be compiled, or those tokens break or
        complete it.
        """
        cursor = Cursor(self._automaton(constraint))
        for offset, token in enumerate(generated):
            if not cursor.advance(token):
                raise RequestError(f"the constraint does not allow the generated token {token} at offset {offset}")
        if cursor.ended:
            raise RequestError("the constraint is complete already: no token may follow")
        return cursor

    def _automaton(self, constraint: pb.Constraint) -> Automaton:
        # Our own hash: one router must not be able to put another constraint in this one's place.
        key = hashlib.sha256(constraint.SerializeToString(deterministic=True)).digest()
        with self._lock:
            if key in self._automata:
                self._automata.move_to_end(key)
                return self._automata[key]
        automaton = read_automaton(constraint, self._languages)
        with self._lock:
            self._automata[key] = automaton
            while len(self._automata) > AUTOMATA:
                self._automata.popitem(last=False)
        return automaton

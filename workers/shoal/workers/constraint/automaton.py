"""A constraint compiled for one vocabulary: states, the paths between them, budgets. Immutable and shared.

    state ── text ──▶ path: piece, piece, … ──▶ state …

See `Constraint` in worker.proto for what each part means.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.wire.grammars import GrammarError
from shoal.workers.constraint.language import Languages, Text
from shoal.workers.constraint.vocabulary import Ids, Vocabulary
from shoal.workers.errors import RequestError

MOST_STATES, MOST_PATHS = 4096, 65536
MOST_KNOWN = 512
"""Places of one automaton whose tokens are remembered."""


@dataclass(frozen=True, slots=True)
class Path:
    """Pieces in order, each a token id or bytes, and the state that they lead to."""

    pieces: tuple[int | bytes, ...]
    state: int


@dataclass(frozen=True, slots=True)
class State:
    """One state. `text`: an empty text of its language; None: any bytes, where `has_text`, or none at all."""

    has_text: bool
    text: Text | None
    paths: tuple[Path, ...]
    budget: int | None
    spent: Path | None  # set with `budget`

    @property
    def is_end(self) -> bool:
        """Whether a sequence stops here."""
        return not self.has_text and not self.paths


@dataclass(frozen=True, slots=True)
class Automaton:
    """Everything that cursors over one constraint share."""

    vocabulary: Vocabulary
    states: tuple[State, ...]
    budgets: tuple[int, ...]  # tokens of text
    _known: dict[Hashable, Ids] = field(default_factory=dict)

    def remember(self, place: Hashable, find: Callable[[], Ids]) -> Ids:
        """What `find` gave when a cursor first stood at `place`. Thread-safe."""
        ids = self._known.get(place)
        if ids is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            ids = self._known[place] = find()
        return ids


def read_automaton(constraint: pb.Constraint, languages: Languages) -> Automaton:
    """Check and compile. Raises RequestError saying which state is wrong and why. Never on an engine's thread."""
    reader = _Reader(languages, len(constraint.states), len(constraint.budgets))
    if not 1 <= len(constraint.states) <= MOST_STATES:
        raise RequestError(f"constraint.states has {len(constraint.states)}, allowed are 1 to {MOST_STATES}")
    if sum(len(state.paths) for state in constraint.states) > MOST_PATHS:
        raise RequestError(f"the constraint has more than {MOST_PATHS} paths")
    states = [reader.state(f"constraint.states[{i}]", state) for i, state in enumerate(constraint.states)]
    return Automaton(languages.vocabulary, tuple(states), tuple(budget.tokens for budget in constraint.budgets))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of one constraint; `place` names a part in messages."""

    languages: Languages
    num_states: int
    num_budgets: int

    def state(self, place: str, state: pb.ConstraintState) -> State:
        if state.budget > self.num_budgets:
            raise RequestError(f"{place}.budget is {state.budget}, there are {self.num_budgets} budgets")
        kind = state.WhichOneof("text")
        text = None
        if kind == "grammar":
            try:
                text = self.languages.begin(state.grammar.kind, state.grammar.source)
            except GrammarError as error:
                raise RequestError(f"{place}.grammar cannot be compiled: {error}") from None
        if kind is None and state.budget:
            raise RequestError(f"{place} has a budget and no text")
        if bool(state.budget) != state.HasField("spent"):
            raise RequestError(f"{place} needs both budget and spent, or neither")
        spent = self.path(f"{place}.spent", state.spent, after_text=True) if state.budget else None
        paths = [
            self.path(f"{place}.paths[{i}]", path, after_text=kind is not None) for i, path in enumerate(state.paths)
        ]
        return State(kind is not None, text, tuple(paths), state.budget - 1 if state.budget else None, spent)

    def path(self, place: str, path: pb.ConstraintPath, *, after_text: bool) -> Path:
        if path.state >= self.num_states:
            raise RequestError(f"{place} leads to state {path.state}, there are {self.num_states}")
        pieces = tuple(self._piece(f"{place}.pieces[{i}]", piece) for i, piece in enumerate(path.pieces))
        if not pieces:
            raise RequestError(f"{place} has no pieces")
        first = pieces[0]
        if after_text and (isinstance(first, bytes) or self.languages.vocabulary.text_of(first)):
            raise RequestError(f"{place} follows text, so it must begin with a control token")
        return Path(pieces, path.state)

    def _piece(self, place: str, piece: pb.ConstraintPiece) -> int | bytes:
        vocabulary = self.languages.vocabulary
        match piece.WhichOneof("piece"):
            case "id":
                if piece.id >= vocabulary.size:
                    raise RequestError(f"{place} is token {piece.id}, the vocabulary ends at {vocabulary.size - 1}")
                return piece.id
            case "text":
                if not piece.text or not vocabulary.spells(piece.text):
                    raise RequestError(f"{place} is text that the vocabulary cannot spell: {piece.text!r}")
                return piece.text
            case _:
                raise RequestError(f"{place} is empty")

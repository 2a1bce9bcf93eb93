"""Where one sequence stands in its constraint. A function of the tokens it generated, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from shoal.workers.constraint.automaton import Automaton, Path
from shoal.workers.constraint.language import Text
from shoal.workers.constraint.vocabulary import Ids
from shoal.workers.errors import ConstraintError

Walk = tuple[tuple[Path, int, int], ...]
"""Paths that fit what was generated since the text: each with its next piece and the offset in that piece's bytes."""


class Cursor:
    """Mutable; one thread at a time. Either inside a state's text (`_walk` is None) or on the way to another state."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._left = list(automaton.budgets)
        self._state = 0
        self._text: Text | None = None
        self._walk: Walk | None = None
        self._allowed: Ids | None = None
        self.position = 0
        """Tokens taken so far."""
        self._enter(0)

    def copy(self) -> Cursor:
        """One that goes its own way from here."""
        other = Cursor.__new__(Cursor)
        other._automaton, other._left, other._state = self._automaton, list(self._left), self._state
        other._text = self._text.copy() if self._text is not None else None
        other._walk, other._allowed, other.position = self._walk, self._allowed, self.position
        return other

    @property
    def ended(self) -> bool:
        """Whether the sequence is complete: no token may follow."""
        return self._automaton.states[self._state].is_end

    def allowed(self) -> Ids:
        """The tokens that may come next, at least one unless ended; not to be changed. Computed once per place.

        Raises ConstraintError at a dead end.
        """
        if self._allowed is None:
            found = self._find_allowed()
            if not len(found) and not self.ended:
                raise ConstraintError(f"no token may follow the {self.position} generated under the constraint")
            self._allowed = found
        return self._allowed

    def barred(self) -> Ids | None:
        """Where nearly everything may come next: the few tokens that may not, not to be changed. None: see `allowed`.

        In free text, which is most of what is generated, this spares a sampler to gather hundreds of thousands.
        """
        if self._walk is not None or self._text is not None:
            return None
        exits = tuple(sorted(self._exit_ids()))
        others = self._automaton.vocabulary.other_ids
        return self._automaton.remember(("all but", exits), lambda: np.setdiff1d(others, exits, assume_unique=True))

    def advance(self, token: int) -> bool:
        """Take the next token. False when it is not allowed, and nothing has changed."""
        if self._walk is None and self._automaton.vocabulary.text_of(token):
            if self._text is not None and not self._text.push(token):
                return False
            self._spend()
        else:
            walk = self._walk if self._walk is not None else self._exits()
            moved = _moved(walk, token, self._automaton.vocabulary.text_of(token))
            if not moved:
                return False
            self._follow(moved)
        self.position += 1
        self._allowed = None
        return True

    def accepted(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` could follow, from the first on. Nothing changes."""
        trial = self.copy()
        return next((i for i, token in enumerate(tokens) if not trial.advance(token)), len(tokens))

    def _find_allowed(self) -> Ids:
        automaton = self._automaton
        if self._walk is not None:
            place = tuple((id(path), piece, offset) for path, piece, offset in self._walk)
            return automaton.remember(place, lambda: self._first_of(map(_rest, self._walk or ())))
        exits = tuple(sorted(self._exit_ids()))
        if self._text is not None:
            return _with(self._text.allowed(), exits)
        return automaton.remember(exits, lambda: _with(automaton.vocabulary.text_ids, exits))

    def _exit_ids(self) -> set[int]:
        """The tokens that lead out of the text as it is."""
        return {path.pieces[0] for path, _, _ in self._exits() if isinstance(path.pieces[0], int)}

    def _first_of(self, pieces: Iterable[int | bytes]) -> Ids:
        """The tokens that one of the pieces begins with."""
        ids: set[int] = set()
        for piece in set(pieces):
            ids.update((piece,) if isinstance(piece, int) else self._automaton.vocabulary.beginning(piece))
        return np.array(sorted(ids), dtype=np.int64)

    def _enter(self, state: int) -> None:
        self._state = state
        entered = self._automaton.states[state]
        self._text, self._walk = None, None
        if not entered.has_text:
            self._walk = self._open(entered.paths)
        elif entered.spent is not None and self._is_spent(state):
            self._walk = ((entered.spent, 0, 0),)
        elif entered.text is not None:
            self._text = entered.text.copy()

    def _spend(self) -> None:
        """Count a token of text."""
        state = self._automaton.states[self._state]
        if state.budget is not None and state.spent is not None:
            self._left[state.budget] -= 1
            if self._left[state.budget] == 0:
                self._text, self._walk = None, ((state.spent, 0, 0),)

    def _exits(self) -> Walk:
        """The beginnings of the paths that may follow the text as it is."""
        if self._text is not None and not self._text.complete:
            return ()
        return self._open(self._automaton.states[self._state].paths)

    def _open(self, paths: Iterable[Path]) -> Walk:
        """The beginnings of `paths`, without those into a spent budget while there are others."""
        all_paths = tuple((path, 0, 0) for path in paths)
        return tuple(start for start in all_paths if not self._is_spent(start[0].state)) or all_paths

    def _is_spent(self, state: int) -> bool:
        budget = self._automaton.states[state].budget
        return budget is not None and self._left[budget] == 0

    def _follow(self, walk: Walk) -> None:
        for path, piece, _ in walk:
            if piece == len(path.pieces):
                self._enter(path.state)
                return
        self._text, self._walk = None, walk


def _moved(walk: Walk, token: int, text: bytes) -> Walk:
    """The paths that `token` fits, one step further."""
    moved = []
    for path, index, offset in walk:
        piece = path.pieces[index]
        if isinstance(piece, int):
            if piece == token:
                moved.append((path, index + 1, 0))
        elif text and piece.startswith(text, offset):
            end = offset + len(text)
            moved.append((path, index + 1, 0) if end == len(piece) else (path, index, end))
    return tuple(moved)


def _rest(place: tuple[Path, int, int]) -> int | bytes:
    """What is left of the next piece."""
    path, index, offset = place
    piece = path.pieces[index]
    return piece[offset:] if isinstance(piece, bytes) else piece


def _with(ids: Ids, exits: tuple[int, ...]) -> Ids:
    """Both, in order."""
    return np.insert(ids, np.searchsorted(ids, exits), exits) if exits else ids

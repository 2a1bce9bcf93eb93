"""A small vocabulary with control tokens, and constraints written by hand over it."""

from __future__ import annotations

from shoal.proto.v1 import constraint_pb2 as pb

END, STOP, OTHER = 300, 301, 302
"""Control tokens: no bytes."""
WORDS = [b"ab", b"abc", b"the ", b'{"', b'": ', b'"}', b"\xc3", b"12", b"true"]
TOKEN_BYTES = tuple([bytes((b,)) for b in range(256)] + WORDS + [b""] * (303 - 256 - len(WORDS)))


def path(*pieces: int | bytes, to: int) -> pb.ConstraintPath:
    """A path to state `to`."""
    made = [pb.ConstraintPiece(id=p) if isinstance(p, int) else pb.ConstraintPiece(text=p) for p in pieces]
    return pb.ConstraintPath(pieces=made, state=to)


def anything(*paths: pb.ConstraintPath, budget: int = 0, spent: pb.ConstraintPath | None = None) -> pb.ConstraintState:
    """A state of free text."""
    return pb.ConstraintState(any=pb.AnyText(), paths=paths, budget=budget, spent=spent)


def written(kind: pb.GrammarKind.ValueType, source: str, *paths: pb.ConstraintPath) -> pb.ConstraintState:
    """A state whose text is of a language."""
    return pb.ConstraintState(grammar=pb.ConstraintGrammar(kind=kind, source=source), paths=paths)


def regex(source: str, *paths: pb.ConstraintPath) -> pb.ConstraintState:
    """A state whose text an expression matches."""
    return written(pb.GRAMMAR_KIND_REGEX, source, *paths)


def choice(*paths: pb.ConstraintPath) -> pb.ConstraintState:
    """A state without text; the end, when there are no paths."""
    return pb.ConstraintState(paths=paths)


def constraint(*states: pb.ConstraintState, budgets: tuple[int, ...] = ()) -> pb.Constraint:
    """States in order, and budgets in tokens."""
    return pb.Constraint(states=states, budgets=[pb.ConstraintBudget(tokens=n) for n in budgets])

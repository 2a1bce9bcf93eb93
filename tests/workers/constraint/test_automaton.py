"""Reading a constraint: everything wrong is refused by place, everything right is compiled once."""

from __future__ import annotations

import llguidance
import pytest

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.wire.grammars import compile_grammar
from shoal.workers.constraint.automaton import read_automaton
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.constraint.language import Languages
from shoal.workers.constraint.vocabulary import Vocabulary
from shoal.workers.errors import RequestError
from tests.workers.constraint.small import END, TOKEN_BYTES, anything, choice, constraint, path, regex, written

WRONG = [
    (constraint(), "constraint.states has 0"),
    (constraint(choice()), "complete already"),
    (constraint(anything(path(END, to=7))), r"states\[0\].paths\[0\] leads to state 7"),
    (constraint(anything(path(to=0))), r"paths\[0\] has no pieces"),
    (constraint(anything(path(b"a", to=0))), "must begin with a control token"),
    (constraint(anything(path(97, to=0))), "must begin with a control token"),
    (constraint(choice(path(999, to=0))), r"pieces\[0\] is token 999"),
    (constraint(choice(path(b"", to=0))), "cannot spell"),
    (constraint(choice(pb.ConstraintPath(pieces=[pb.ConstraintPiece()]))), r"pieces\[0\] is empty"),
    (constraint(anything(budget=1, spent=path(END, to=0))), "there are 0 budgets"),
    (constraint(anything(budget=1), budgets=(1,)), "both budget and spent"),
    (constraint(pb.ConstraintState(budget=1, spent=path(END, to=0)), budgets=(1,)), "a budget and no text"),
    (constraint(choice(path(END, to=1)), regex("(")), r"states\[1\].grammar cannot be compiled: .*regex"),
    (constraint(written(pb.GRAMMAR_KIND_JSON_SCHEMA, '{"type": "strin"}')), "Invalid type: strin"),
    (constraint(written(pb.GRAMMAR_KIND_JSON_SCHEMA, "{")), "is not JSON"),
    (constraint(written(pb.GRAMMAR_KIND_JSON_SCHEMA, '{"anyOf": [{"$ref": "#"}]}')), "no text satisfies"),
    (constraint(written(pb.GRAMMAR_KIND_LARK, "start: <[300]>")), "control tokens cannot be named"),
    (constraint(written(pb.GRAMMAR_KIND_UNSPECIFIED, "a")), "are not known here"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_refused_by_place(message: pb.Constraint, words: str) -> None:
    """A constraint that cannot be run is a RequestError that says where and why."""
    with pytest.raises(RequestError, match=words):
        ConstraintCompiler(TOKEN_BYTES).begin(message)


def test_text_that_the_vocabulary_cannot_spell_is_refused() -> None:
    """A path of bytes that no tokens stand for would be a dead end."""
    languages = Languages(Vocabulary([b"a", b"", b"bc"]), 4)

    with pytest.raises(RequestError, match="cannot spell"):
        read_automaton(constraint(choice(path(b"ab", to=0))), languages)


def test_grammars_and_constraints_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two constraints that share a grammar compile it once; the least recently used is forgotten."""
    compiled: list[str] = []

    def counting(
        kind: pb.GrammarKind.ValueType, source: str, tokenizer: llguidance.LLTokenizer
    ) -> llguidance.LLMatcher:
        compiled.append(source)
        return compile_grammar(kind, source, tokenizer)

    monkeypatch.setattr("shoal.workers.constraint.language.compile_grammar", counting)
    languages = Languages(Vocabulary(TOKEN_BYTES), 2)
    for source in ("a+", "b", "a+", "c", "a+", "b"):
        languages.begin(pb.GRAMMAR_KIND_REGEX, source)

    assert compiled == ["a+", "b", "c", "b"]


def test_a_cached_constraint_starts_anew() -> None:
    """Cursors over the same constraint do not see one another."""
    compiler = ConstraintCompiler(TOKEN_BYTES)
    message = constraint(regex("ab|cd", path(END, to=1)), choice())
    first, second = compiler.begin(message), compiler.begin(message)
    first.advance(97)

    assert first.allowed().tolist() == [98]
    assert second.advance(99)

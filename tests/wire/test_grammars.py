"""Compiling grammars: the same bounds and the same words at both ends."""

from __future__ import annotations

import pytest

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.wire.grammars import LONGEST_SOURCE, GrammarError, check_grammar, compiled_form

JSON, LENIENT = pb.GRAMMAR_KIND_JSON_SCHEMA, pb.GRAMMAR_KIND_JSON_SCHEMA_LENIENT


def test_the_schema_true_is_any_value() -> None:
    """A boolean is a schema too."""
    assert () == check_grammar(JSON, "true")
    with pytest.raises(GrammarError, match="not bool"):
        check_grammar(JSON, "false")


def test_a_schema_cannot_change_how_it_is_compiled() -> None:
    """The library's own options in a schema are replaced by ours: strict stays strict, JSON stays JSON."""
    schema = '{"uniqueItems": true, "x-guidance": {"lenient": true, "key_separator": "="}}'

    assert "key_separator" not in compiled_form(JSON, schema)
    with pytest.raises(GrammarError, match="uniqueItems"):
        check_grammar(JSON, schema)
    assert ('Unimplemented keys: ["uniqueItems"]',) == check_grammar(LENIENT, schema)


@pytest.mark.parametrize("source", ["[" * 100_000, '{"type": "object"', "3", '"x"', "null"])
def test_what_is_no_schema_is_refused(source: str) -> None:
    """However odd the text, the answer is a GrammarError."""
    with pytest.raises(GrammarError):
        check_grammar(JSON, source)


def test_a_grammar_has_a_longest_length() -> None:
    """So that nobody compiles for ever."""
    with pytest.raises(GrammarError, match="at most"):
        check_grammar(pb.GRAMMAR_KIND_REGEX, "a" * (LONGEST_SOURCE + 1))


def test_reasons_hold_no_stack_traces_and_no_lines_of_ours() -> None:
    """What a client reads is about their grammar."""
    for kind, source in ((pb.GRAMMAR_KIND_LARK, "start: x"), (JSON, '{"anyOf": [{"$ref": "#"}]}')):
        with pytest.raises(GrammarError) as caught:
            check_grammar(kind, source)
        assert "no_forcing" not in str(caught.value)
        assert "<" not in str(caught.value)

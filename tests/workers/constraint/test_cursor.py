"""Moving through a constraint token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.proto.v1 import constraint_pb2 as pb
from shoal.workers.constraint.compiler import ConstraintCompiler
from shoal.workers.constraint.cursor import Cursor
from shoal.workers.errors import ConstraintError, RequestError
from tests.workers.constraint.small import (
    END,
    OTHER,
    STOP,
    TOKEN_BYTES,
    anything,
    choice,
    constraint,
    path,
    regex,
    written,
)

COMPILER = ConstraintCompiler(TOKEN_BYTES)
JSON = written(pb.GRAMMAR_KIND_JSON_SCHEMA, '{"type": "object", "additionalProperties": {"type": "integer"}}')


def taken(cursor: Cursor, tokens: Sequence[int]) -> Cursor:
    """The cursor after tokens that are allowed."""
    for token in tokens:
        assert token in cursor.allowed()
        assert cursor.advance(token)
    return cursor


def allowed_texts(cursor: Cursor) -> set[bytes | int]:
    """What is allowed: bytes of text tokens, ids of control tokens."""
    return {TOKEN_BYTES[token] or token for token in cursor.allowed().tolist()}


def test_free_text_allows_every_byte_and_no_stray_control_token() -> None:
    """In free text every token with bytes is allowed, of the control tokens only those that lead on."""
    cursor = COMPILER.begin(constraint(anything(path(END, to=1)), choice()))

    allowed = cursor.allowed().tolist()
    assert allowed == sorted(allowed)
    assert {i for i, text in enumerate(TOKEN_BYTES) if text} | {END} == set(allowed)
    assert not cursor.advance(OTHER)
    assert not cursor.advance(len(TOKEN_BYTES) + 5)
    assert taken(cursor, [97, 98, END]).ended
    assert len(cursor.allowed()) == 0


def test_what_is_barred_in_free_text_is_all_the_rest() -> None:
    """Both ways to say it agree; where a path or a language is followed only one of them is short."""
    cursor = COMPILER.begin(constraint(anything(path(END, to=1)), choice()))
    barred = cursor.barred()

    assert barred is not None
    assert set(range(len(TOKEN_BYTES))) - set(cursor.allowed().tolist()) == set(barred.tolist())
    assert COMPILER.begin(constraint(JSON, choice())).barred() is None
    assert taken(cursor, [97, END]).barred() is None


def test_bytes_of_a_path_may_be_cut_into_tokens_in_any_way() -> None:
    """Each token that the rest of a path's bytes begins with is allowed; none may reach beyond them."""
    cursor = COMPILER.begin(constraint(choice(path(b"abc", STOP, to=1)), choice()))

    assert allowed_texts(cursor) == {b"a", b"ab", b"abc"}
    assert allowed_texts(taken(cursor.copy(), b"a")) == {b"b"}
    short = COMPILER.begin(constraint(choice(path(b"ab", STOP, to=1)), choice()))
    assert allowed_texts(short) == {b"a", b"ab"}


def test_paths_that_begin_alike_stay_open_together() -> None:
    """What was generated decides between paths, as late as they differ."""
    automaton = constraint(
        choice(path(OTHER, b"ab", STOP, to=1), path(OTHER, b"abc", STOP, to=2), path(b"x", END, to=2)),
        anything(path(END, to=2)), choice(),
    )  # fmt: skip
    cursor = COMPILER.begin(automaton)

    assert allowed_texts(cursor) == {OTHER, b"x"}
    taken(cursor, [OTHER, *b"ab"])
    assert allowed_texts(cursor) == {b"c", STOP}
    assert END in taken(cursor.copy(), [STOP]).allowed()
    assert taken(cursor, [*b"c", STOP]).ended


def test_text_of_a_language_ends_only_where_it_is_a_word() -> None:
    """The way on opens when the text is complete, and closes when it goes on to something longer."""
    cursor = COMPILER.begin(constraint(regex("(ab)+", path(END, to=1)), choice()))

    assert allowed_texts(cursor) == {b"a", b"ab"}
    assert not cursor.copy().advance(END)
    assert allowed_texts(taken(cursor, b"ab")) == {b"a", b"ab", END}
    assert allowed_texts(taken(cursor, b"a")) == {b"b"}
    assert taken(cursor, [*b"b", END]).ended


def test_a_spent_budget_leaves_one_way() -> None:
    """After the last token of a budget only its path is allowed, even in the middle of a word."""
    automaton = constraint(
        anything(path(END, to=0), path(STOP, to=1), budget=1, spent=path(END, b"ab", OTHER, to=1)),
        choice(path(b"x", STOP, to=2)), choice(), budgets=(3,),
    )  # fmt: skip
    cursor = COMPILER.begin(automaton)

    taken(cursor, [*b"qq", END])  # back to the same state: the budget goes on
    assert allowed_texts(taken(cursor, [0xC3])) == {END}
    taken(cursor, [END])
    assert allowed_texts(cursor) == {b"a", b"ab"}
    assert allowed_texts(taken(cursor, [*b"ab", OTHER])) == {b"x"}


def test_a_state_whose_budget_is_spent_is_not_offered() -> None:
    """A path into a state without budget left is closed, unless it is the only one; then its way on is forced."""
    spent = path(OTHER, to=3)
    thinking = anything(path(END, to=0), budget=1, spent=spent)
    both = constraint(choice(path(b"a", END, to=1), path(b"b", to=2)), thinking, anything(path(STOP, to=3)), choice(),
                      budgets=(0,))  # fmt: skip
    only = constraint(choice(path(b"a", END, to=1)), thinking, choice(), choice(), budgets=(0,))

    assert allowed_texts(COMPILER.begin(both)) == {b"b"}
    assert allowed_texts(taken(COMPILER.begin(only), [*b"a", END])) == {OTHER}


def test_json_stays_within_the_schema() -> None:
    """Only tokens that keep the text a beginning of a value that the schema describes are allowed."""
    state = written(JSON.grammar.kind, JSON.grammar.source, path(STOP, to=1))
    cursor = taken(COMPILER.begin(constraint(state, choice())), b'{"a": ')

    assert allowed_texts(cursor) <= {b"%d" % i for i in range(10)} | {b"-", b"12", b" ", b"\n", b"\t", b"\r"}
    assert taken(cursor, [*b"12}", STOP]).ended


def test_whitespace_between_values_is_bounded() -> None:
    """A model cannot indent for ever."""
    state = written(JSON.grammar.kind, JSON.grammar.source, path(STOP, to=1))
    cursor = taken(COMPILER.begin(constraint(state, choice())), b"{")
    count = 0
    while 32 in cursor.allowed():
        cursor.advance(32)
        count += 1

    assert 64 == count
    assert taken(cursor, [*b"}", STOP]).ended


def test_a_dead_end_is_an_error_with_its_place() -> None:
    """A language whose texts cannot be spelled ends in ConstraintError, not in an empty choice."""
    cursor = ConstraintCompiler([b"a", b"c", b""]).begin(constraint(regex("ab|c", path(2, to=1)), choice()))
    taken(cursor, [0])

    for _ in range(2):
        with pytest.raises(ConstraintError, match="no token may follow the 1 generated"):
            cursor.allowed()


RICH = constraint(
    choice(path(OTHER, b"ab", END, to=1), path(OTHER, b"ab{", END, to=2), path(b"the ", OTHER, to=3)),
    anything(path(END, to=0), budget=1, spent=path(END, b"the ", OTHER, to=3)),
    written(JSON.grammar.kind, JSON.grammar.source, path(END, to=0), path(STOP, to=4)),
    regex("([a-c]{2,4}|é+)(, )?", path(STOP, to=4), path(END, to=0)),
    choice(), budgets=(12,),
)  # fmt: skip


def walk(seed: int, most: int) -> list[int]:
    """A random sequence that RICH allows."""
    chance, cursor = random.Random(seed), COMPILER.begin(RICH)
    tokens: list[int] = []
    while not cursor.ended and len(tokens) < most:
        allowed = cursor.allowed().tolist()
        controls = [token for token in allowed if token >= END]
        token = chance.choice(controls if controls and chance.random() < 0.3 else allowed)
        assert cursor.advance(token)
        tokens.append(token)
    return tokens


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 80))
def test_replay_from_any_prefix_stands_where_the_walk_stood(seed: int, cut: int) -> None:
    """A cursor made from a prefix allows what the one that walked there allows, there and ever after."""
    tokens = walk(seed, 80)
    cut = min(cut, len(tokens) - 1)
    walked, replayed = taken(COMPILER.begin(RICH), tokens[:cut]), COMPILER.begin(RICH, tokens[:cut])

    assert walked.position == replayed.position == cut
    for token in tokens[cut:]:
        assert walked.allowed().tolist() == replayed.allowed().tolist()
        walked.advance(token)
        replayed.advance(token)
    assert walked.ended == replayed.ended


@given(seed=st.integers(0, 10**6), wrong=st.integers(0, 302), place=st.integers(0, 60))
def test_allowed_is_exactly_what_advance_takes(seed: int, wrong: int, place: int) -> None:
    """A token is taken if and only if it was allowed; refusing one changes nothing, nor does counting drafts."""
    tokens = walk(seed, 60)
    place = min(place, len(tokens) - 1)
    cursor = COMPILER.begin(RICH, tokens[:place])
    allowed = cursor.allowed().tolist()

    assert cursor.accepted(tokens[place:]) == len(tokens) - place
    assert cursor.copy().advance(wrong) == (wrong in allowed)
    if wrong not in allowed:
        assert not cursor.advance(wrong)
    assert cursor.allowed().tolist() == allowed
    assert cursor.position == place


def test_breaking_or_completing_the_constraint_beforehand_is_refused() -> None:
    """Generated tokens that the constraint does not allow, or that complete it, are refused by offset."""
    automaton = constraint(anything(path(STOP, to=1)), choice())

    with pytest.raises(RequestError, match=f"token {END} at offset 1"):
        COMPILER.begin(automaton, [97, END])
    with pytest.raises(RequestError, match="complete already"):
        COMPILER.begin(automaton, [97, STOP])

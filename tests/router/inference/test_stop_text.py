"""Stop texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.router.inference.stop_text import StopText

_letters = st.text(alphabet="abc", max_size=20)


@given(st.lists(_letters, max_size=8), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_the_cut_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    """Any way of cutting a text into pieces gives what the text letter by letter gives."""
    whole = "".join(pieces)
    in_pieces, in_letters = StopText(stops), StopText(stops)
    one = "".join([*map(in_pieces.push, pieces), in_pieces.finish()])
    other = "".join([*map(in_letters.push, whole), in_letters.finish()])

    assert one == other
    assert in_pieces.reached == in_letters.reached


@given(_letters, st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_no_stop_is_ever_shown(text: str, stops: list[str]) -> None:
    """What passes holds no stop text, and is the beginning of the text; without a stop in it, all of it."""
    stop = StopText(stops)
    shown = "".join([*map(stop.push, text), stop.finish()])

    assert not any(word in shown for word in stops)
    assert text.startswith(shown)
    assert stop.reached == any(word in text for word in stops)
    assert stop.reached or shown == text


def test_only_a_possible_beginning_is_held_back() -> None:
    """Text is passed on as soon as it cannot belong to a stop text."""
    stop = StopText(["\n\nUser:"])

    assert [stop.push(piece) for piece in ("hello\n", "\n", "x")] == ["hello", "", "\n\nx"]


def test_empty_stop_is_our_mistake() -> None:
    """Requests with an empty stop text never get here."""
    with pytest.raises(AssertionError):
        StopText([""])

"""`shoal.workers.checkpoint.error`."""

from __future__ import annotations

import pickle

import pytest

from shoal.workers.checkpoint.error import CheckpointError


def test_names_everything_in_one_line() -> None:
    """File, tensor, problem, expected and found are all in the text, in that order."""
    error = CheckpointError("a/b", "wrong shape", tensor="t", expected=(2, 3), found=(3, 2))
    assert str(error) == "a/b: tensor t: wrong shape: expected (2, 3), found (3, 2)"


def test_leaves_out_what_is_not_known() -> None:
    """Without a tensor or facts the text has no empty parts."""
    assert str(CheckpointError("a", "missing file")) == "a: missing file"
    assert str(CheckpointError("a", "bad JSON", found="x")) == "a: bad JSON: found x"


def test_survives_pickling() -> None:
    """A worker's error arrives whole at whoever started it."""
    error = CheckpointError("a", "wrong", tensor="t", expected=1)
    again = pickle.loads(pickle.dumps(error))
    assert (str(error), error.tensor, error.expected, error.found) == (
        str(again),
        again.tensor,
        again.expected,
        again.found,
    )


@pytest.mark.parametrize("found", ["two\nlines", "\x1b[31mred", "\ud800", "x" * 10**6, 10**5000], ids=range(5))
def test_stays_printable_and_short(found: object) -> None:
    """Whatever a broken file holds, the text is one printable line of bounded length."""
    text = str(CheckpointError("a", "bad", tensor=str(found)[:50] if isinstance(found, str) else "t", found=found))
    assert text.isprintable()
    assert len(text) < 500

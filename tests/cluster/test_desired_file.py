"""A size that is wanted, read from a file that changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shoal.cluster.desired_file import follow
from shoal.wire.registry import Desired


class EndedError(Exception):
    """The test's story is told."""


def write(path: Path, text: str) -> None:
    """Put it there."""
    path.write_text(text)


async def told(path: Path, story: Sequence[Callable[[], object]], answers: Sequence[str | Exception]) -> list[Desired]:
    """What was asked for while the story went on, one line of it before each look."""
    asked: list[Desired] = []
    lines, given = iter(story), iter(answers)

    async def want(desired: Desired) -> str:
        asked.append(desired)
        answer = next(given, "")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(_: float) -> None:
        line = next(lines, None)
        if line is None:
            raise EndedError
        line()

    write(path, "ep_size = 4\ngroups = 1\n")
    with pytest.raises(EndedError):
        await follow(path, Desired(4, 1), want, sleep)
    return asked


async def test_only_a_change_is_acted_on(tmp_path: Path) -> None:
    """Once, with what the file does not say left as it is."""
    path = tmp_path / "desired.toml"
    story = [lambda: None, lambda: path.write_text("ep_size = 8"), lambda: None]
    assert [Desired(8, 1)] == await told(path, story, [])


async def test_what_could_not_be_taken_is_tried_again(tmp_path: Path) -> None:
    """Redis was away for a moment."""
    path = tmp_path / "desired.toml"
    story = [lambda: path.write_text("groups = 2"), lambda: None, lambda: None]
    assert [Desired(4, 2), Desired(4, 2)] == await told(path, story, [ConnectionError("away")])


async def test_what_is_refused_is_left_until_the_file_changes(tmp_path: Path) -> None:
    """A size that the model cannot have is not asked for every two seconds."""
    path = tmp_path / "desired.toml"
    story = [lambda: path.write_text("ep_size = 200"), lambda: None, lambda: path.write_text("ep_size = 2")]
    assert [Desired(200, 1), Desired(2, 1)] == await told(path, story, ["more ranks than experts"])


async def test_a_file_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    """It is about to be replaced, or somebody made a mistake."""
    path = tmp_path / "desired.toml"
    assert [] == await told(path, [path.unlink, lambda: path.write_text("ep_size = many")], [])

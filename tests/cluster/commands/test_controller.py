"""`shoal controller`: what it reads before it meets Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.commands import controller
from shoal.cluster.commands.controller import run
from shoal.cluster.config import load
from shoal.cluster.desired_file import wanted
from shoal.cluster.errors import ConfigError, StartError


def test_the_desired_size_is_read_from_its_file(tmp_path: Path) -> None:
    """TOML, as the chart writes it."""
    path = tmp_path / "desired.toml"
    path.write_text("ep_size = 4\ngroups = 2\n")
    assert {"ep_size": 4, "groups": 2} == wanted(path)


@pytest.mark.parametrize("text", ["ep_size = '4'", "epsize = 4", "ep_size = true", "ep_size"])
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    """By its name."""
    path = tmp_path / "desired.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"desired\.toml"):
        wanted(path)


@pytest.mark.parametrize(("given", "missing"), [((), "model"), (("cluster.model=dir",), "redis_url")])
def test_what_is_missing_is_named(given: tuple[str, ...], missing: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=rf"cluster\.{missing}"):
        run(load(environment={}, assignments=given), None)


class LateRay:
    """In the place of the start itself: Ray answers at the third try, and what was asked for is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tries: list[float] = []
        monkeypatch.setattr(controller, "_start", self.start)
        monkeypatch.setattr(controller, "_RETRY", 0.05)

    def start(self, *_: object, again: float) -> None:
        self.tries.append(again)
        if len(self.tries) < 3:
            raise StartError("cannot connect to Ray")


SAID = ("cluster.model=dir", "cluster.redis_url=redis://r:6379/0", "cluster.start_timeout=0.01")


def test_a_start_hook_never_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at its exit status: a head without a controller would be well for ever. Groups do likewise."""
    ray = LateRay(monkeypatch)
    run(load(environment={}, assignments=SAID), None, keep_trying=True)
    assert [controller._AGAIN] * 3 == ray.tries


def test_a_person_is_told_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it ends with the reason, and a group that fails stays failed."""
    ray = LateRay(monkeypatch)
    with pytest.raises(StartError, match="cannot connect"):
        run(load(environment={}, assignments=SAID), None)
    assert [0.0] == ray.tries

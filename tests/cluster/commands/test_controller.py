"""`shoal controller`: what it reads before it meets Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.commands.controller import run
from shoal.cluster.config import load
from shoal.cluster.desired_file import wanted
from shoal.cluster.errors import ConfigError


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

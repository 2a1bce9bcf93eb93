"""The recipe beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.nano.recipe import Recipe
from tests.nano.conftest import NANO_DIR


def test_the_committed_recipe_is_valid() -> None:
    """It begins gently, ends at rest and ends quantised."""
    recipe = Recipe.load(NANO_DIR / "recipe.toml")
    assert recipe.at(0)[1] < 0.1
    last, rate = recipe.at(recipe.steps - 1)
    assert rate < 0.05
    assert last.quantised
    with pytest.raises(ValueError, match="after the last"):
        recipe.at(recipe.steps)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    """A misspelt key must not be ignored for an hour."""
    text = (NANO_DIR / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(f"speed = 3\n{text}")
    with pytest.raises(ValueError, match="speed is no key"):
        Recipe.load(tmp_path / "recipe.toml")

"""templates/NOTES.txt, and that every template has a test file."""

from __future__ import annotations

from tests.chart.rendering import CHART, notes


def test_every_template_has_a_test_file() -> None:
    """Named after it."""
    templates = {path.stem for path in (CHART / "templates").glob("*.yaml")}
    tests = {path.stem.removeprefix("test_") for path in (CHART.parents[1] / "tests/chart/templates").glob("test_*.py")}
    assert set() == templates - tests


def test_the_next_three_commands_are_told() -> None:
    """Wait, test, talk: with the names of this very release."""
    for words in ("rollout status deployment/fish-shoal-router", "helm test fish -n sea", "-- shoal chat"):
        assert words in notes()


def test_whoever_closed_the_door_is_told_how_to_make_a_key() -> None:
    """With keys in Redis nobody has one; with keys in a Secret somebody has."""
    assert "shoal keys create" in notes({"auth": {"required": True}})
    assert "shoal keys create" not in notes({"auth": {"required": True, "existingSecret": "keys"}})
    assert "shoal keys create" not in notes()


def test_the_commands_work_behind_a_closed_door_too() -> None:
    """A chat and the test need a key, where keys are asked for."""
    closed = {"auth": {"required": True}}
    assert "env SHOAL_API_KEY=" in notes(closed)
    assert "test.apiKeySecret" in notes(closed)
    assert "test.apiKeySecret" not in notes(closed | {"test": {"apiKeySecret": "key"}})
    assert [] == [word for word in ("SHOAL_API_KEY", "apiKeySecret") if word in notes()]


def test_an_open_door_is_told() -> None:
    """Whoever installs without TLS or credentials is told so, and nobody else."""
    assert "in the clear" in notes()
    assert "ANYBODY" in notes()
    closed = {"tls": {"enabled": True, "existingSecret": "a", "internalSecret": "b"}, "auth": {"required": True}}
    assert not {"in the clear", "ANYBODY"} & {words for words in ("in the clear", "ANYBODY") if words in notes(closed)}

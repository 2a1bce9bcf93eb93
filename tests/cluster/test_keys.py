"""`shoal keys`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shoal.cluster.commands.keys import app
from shoal.cluster.errors import CallError, ConfigError
from shoal.router.access.key import Key, matches


def keys(*arguments: str) -> Result:
    """Run the command; what it raises is raised."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("place", ["file", "redis"])
def test_a_key_lives_and_ends(place: str, tmp_path: Path, redis_url: str) -> None:
    """Made, shown once, listed without its secret, renewed, revoked; in a file and in Redis alike."""
    where = ("--file", str(tmp_path / "keys.json")) if place == "file" else ("--redis-url", redis_url)
    made = keys("create", "--tenant", "acme", "--role", "viewer", "--name", "a dashboard", "--days", "1", *where)
    shown = made.stdout.strip()
    listed = keys("list", "--json", *where)
    (key,) = json.loads(listed.stdout)
    renewed = keys("rotate", key["id"], *where).stdout.strip()
    keys("revoke", key["id"], *where)
    after = {k["id"]: k for k in json.loads(keys("list", "--json", *where).stdout)}

    assert (key["tenant"], key["role"], key["name"]) == ("acme", "viewer", "a dashboard")
    assert shown.startswith(f"shk_{key['id']}_")
    assert shown not in listed.stdout
    assert shown[17:] not in listed.stdout + made.stderr
    assert renewed != shown
    assert after[key["id"]]["revoked"] > 0
    assert len(after) == 2
    assert key["id"] in keys("list", *where).stdout


def test_what_is_kept_is_no_secret(tmp_path: Path) -> None:
    """The file holds a digest that the key fits, and not the key."""
    file = tmp_path / "keys.json"
    shown = keys("create", "--tenant", "acme", "--file", str(file)).stdout.strip()
    (record,) = json.loads(file.read_text())["keys"]

    assert shown[17:] not in file.read_text()
    assert matches(Key.from_json(record), shown[17:])
    assert not matches(Key.from_json(record), shown[17:-1] + "!")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "--tenant", "acme", "--role", "king"), "a role is one of"),
        (("create", "--tenant", "a\0b"), "a tenant has"),
        (("create", "--tenant", "acme", "--certificate", "x"), "a certificate is named by"),
        (("revoke", "aaaaaaaaaaaa"), "there is no key"),
        (("rotate", "aaaaaaaaaaaa"), "there is no key"),
    ],
)
def test_what_is_wrong_is_told(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """In one line that says what is expected."""
    with pytest.raises(ConfigError, match=told):
        keys(*arguments, "--file", str(tmp_path / "keys.json"))


def test_a_redis_that_is_away_is_told() -> None:
    """With an exit code of its own."""
    with pytest.raises(CallError, match="Redis does not answer"):
        keys("list", "--redis-url", "redis://127.0.0.1:1")

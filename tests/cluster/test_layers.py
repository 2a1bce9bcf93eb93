"""Settings from file, environment and flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cluster import layers
from shoal.cluster.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Pool:
    """A section of every type that settings have."""

    name: str
    size: int = 1
    wait: float = 0.5
    eager: bool = False
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"pool.size must be at least 1, not {self.size}")


SECTIONS: dict[str, type] = {"pool": Pool}


def refusal(make: layers.Layers, **fixed: str) -> str:
    """What building the section of these layers is refused with."""
    with pytest.raises(ConfigError) as caught:
        layers.build(Pool, "pool", make, **fixed)
    return str(caught.value)


def test_every_type_is_read_from_toml(tmp_path: Path) -> None:
    """A TOML table becomes the dataclass, an integer where a float is wanted included."""
    path = tmp_path / "a.toml"
    path.write_text('[pool]\nname = "x"\nsize = 3\nwait = 2\neager = true\nhosts = ["a", "b"]\nports = [1, 2]\n')
    assert Pool("x", 3, 2.0, True, ("a", "b"), (1, 2)) == layers.build(Pool, "pool", layers.from_file(path, SECTIONS))


def test_every_type_is_read_from_words() -> None:
    """Environment variables and --set are words and become values of the field's type."""
    env = {"SHOAL_POOL__NAME": "x", "SHOAL_POOL__SIZE": "3", "SHOAL_POOL__WAIT": "2", "SHOAL_POOL__EAGER": "yes"}
    given_layers = layers.from_environment(env, SECTIONS) | layers.from_assignments(
        ["pool.hosts=a, b", "pool.ports=1, 2"], SECTIONS
    )
    assert Pool("x", 3, 2.0, True, ("a", "b"), (1, 2)) == layers.build(Pool, "pool", given_layers)


def test_later_layers_win(tmp_path: Path) -> None:
    """Flags over environment over file, key by key."""
    path = tmp_path / "a.toml"
    path.write_text('[pool]\nname = "file"\nsize = 2\nwait = 1.0\n')
    merged = layers.from_file(path, SECTIONS)
    merged |= layers.from_environment({"SHOAL_POOL__SIZE": "3", "SHOAL_POOL__WAIT": "2"}, SECTIONS)
    merged |= layers.from_flags({"pool.wait": 3.0, "pool.eager": None}, SECTIONS)
    assert Pool("file", 3, 3.0) == layers.build(Pool, "pool", merged)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[pool]\nsise = 1", "a.toml: pool.sise is not a setting; did you mean 'size'?"),
        ("[puol]\nsize = 1", "a.toml: there is no section 'puol'; did you mean 'pool'?"),
        ("pool = 1", "a.toml: pool must be a table, written [pool]"),
        ("[pool", "a.toml: is not TOML: "),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    """Unknown keys and sections are errors that name file and key, with the likely word."""
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.toml") as caught:
        layers.from_file(path, SECTIONS)
    assert expected in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that was named must exist."""
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read: No such file"):
        layers.from_file(tmp_path / "gone.toml", SECTIONS)


def test_an_unknown_variable_is_refused() -> None:
    """A misspelt variable of ours is an error, not ignored."""
    with pytest.raises(ConfigError, match=r"SHOAL_POOL__SIZ: pool\.siz is not a setting; did you mean 'size'"):
        layers.from_environment({"SHOAL_POOL__SIZ": "1"}, SECTIONS)


def test_kubernetes_variables_are_not_ours() -> None:
    """What Kubernetes sets for a service named shoal-pool has one underscore and is left alone."""
    assert layers.from_environment({"SHOAL_POOL_PORT": "tcp://10.0.0.1:1", "SHOAL_KERNELS": "torch"}, SECTIONS) == {}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("pool.size=many", "pool.size must be an integer, not 'many' (from --set pool.size)"),
        ("pool.wait=soon", "pool.wait must be a number, not 'soon' (from --set pool.wait)"),
        ("pool.eager=maybe", "pool.eager must be true or false, not 'maybe' (from --set pool.eager)"),
        ("pool.size=0", "pool.size must be at least 1, not 0 (from --set pool.size)"),
    ],
)
def test_a_wrong_value_names_key_and_source(assignment: str, expected: str) -> None:
    """Wrong types and the dataclass's own refusals say which key and where it was set."""
    assert expected == refusal(layers.from_assignments([assignment, "pool.name=x"], SECTIONS))


def test_a_wrong_toml_type_names_the_file(tmp_path: Path) -> None:
    """TOML values are taken as they are: true is no integer, 1 is no string."""
    path = tmp_path / "a.toml"
    path.write_text('[pool]\nname = "x"\nsize = true')
    assert f"pool.size must be an integer, not True (from {path})" == refusal(layers.from_file(path, SECTIONS))


def test_a_missing_key_says_how_to_set_it() -> None:
    """A setting without a default is asked for by name."""
    expected = "pool.name is missing: set it in the file, with SHOAL_POOL__NAME or --set pool.name="
    assert expected == refusal({})


@pytest.mark.parametrize("assignment", ["pool.size", "size=1", "=", ""])
def test_a_malformed_assignment_is_refused(assignment: str) -> None:
    """--set needs section.key=value."""
    with pytest.raises(ConfigError, match=r"must be written section\.key=value"):
        layers.from_assignments([assignment], SECTIONS)


@given(
    st.builds(
        Pool,
        name=st.text(st.characters(codec="ascii", exclude_characters="\x00")),
        size=st.integers(min_value=1),
        wait=st.floats(allow_nan=False),
        eager=st.booleans(),
        hosts=st.lists(st.from_regex(r"[a-z0-9.:]+", fullmatch=True)).map(tuple),
    )
)
def test_as_text_is_read_back_exactly(pool: Pool) -> None:
    """A configuration handed to a child process by environment arrives unchanged."""
    env = {f"SHOAL_POOL__{f.name.upper()}": layers.as_text(getattr(pool, f.name)) for f in dataclasses.fields(pool)}
    assert pool == layers.build(Pool, "pool", layers.from_environment(env, SECTIONS))


def test_a_variable_may_name_a_file_with_the_value(tmp_path: Path) -> None:
    """As secrets are mounted: SHOAL_<SECTION>__<KEY>_FILE, the last line end dropped."""
    path = tmp_path / "secret"
    path.write_text("word\n")
    read = layers.from_environment({"SHOAL_POOL__NAME_FILE": str(path)}, SECTIONS)
    assert "word" == read["pool", "name"].value
    with pytest.raises(ConfigError, match="SHOAL_POOL__NAME_FILE"):
        layers.from_environment({"SHOAL_POOL__NAME_FILE": str(tmp_path / "nowhere")}, SECTIONS)

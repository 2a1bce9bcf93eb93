"""Settings from a TOML file, the environment and flags, laid over each other; every value remembers its source.

Later layers win: file, then `SHOAL_<SECTION>__<KEY>` variables, then flags. Two underscores stand between section and
key because Kubernetes sets variables such as SHOAL_ROUTER_PORT of its own accord for a service named shoal-router.

>>> @dataclasses.dataclass(frozen=True)
... class Pool:
...     size: int = 1
...     names: tuple[str, ...] = ()
>>> layers = from_environment({"SHOAL_POOL__SIZE": "3", "SHOAL_POOL__NAMES": "a,b"}, {"pool": Pool})
>>> build(Pool, "pool", layers)
Pool(size=3, names=('a', 'b'))
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from shoal.cluster.errors import ConfigError

T = TypeVar("T")
Sections = Mapping[str, type]
"""Section name -> the dataclass that its keys are fields of."""


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A value and where it came from. `text` values are written as words and still need their type."""

    value: Any
    source: str
    text: bool = False


Layers = dict[tuple[str, str], Given]
"""(section, key) -> what was given."""


def from_file(path: Path, sections: Sections) -> Layers:
    """Settings in a TOML file. Raises ConfigError when it is unreadable, is not TOML, or has an unknown key."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    layers: Layers = {}
    for section, table in document.items():
        _known_section(section, sections, str(path))
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} must be a table, written [{section}]")
        for key, value in table.items():
            _known_key(section, key, sections, str(path))
            layers[section, key] = Given(value, str(path))
    return layers


def from_environment(environment: Mapping[str, str], sections: Sections) -> Layers:
    """Settings among environment variables. Raises ConfigError for SHOAL_<SECTION>__… with an unknown key.

    SHOAL_<SECTION>__<KEY>_FILE names a file that holds the value, as secrets are mounted; its last line end is dropped.
    """
    layers: Layers = {}
    for name, value in environment.items():
        if match := re.fullmatch(r"SHOAL_([A-Z0-9]+)__([A-Z0-9_]+)", name):
            section, key = match[1].lower(), match[2].lower()
            _known_section(section, sections, name)
            if key.endswith("_file") and key not in {f.name for f in dataclasses.fields(sections[section])}:
                key, value = key.removesuffix("_file"), _content(Path(value), name)
            _known_key(section, key, sections, name)
            layers[section, key] = Given(value, name, text=True)
    return layers


def _content(path: Path, name: str) -> str:
    try:
        return path.read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error}") from error


def from_flags(flags: Mapping[str, Any], sections: Sections) -> Layers:
    """Settings by dotted name (`worker.threads`); None means the flag was not given."""
    layers: Layers = {}
    for dotted, value in flags.items():
        if value is not None:
            section, _, key = dotted.partition(".")
            _known_section(section, sections, f"option for {dotted}")
            _known_key(section, key, sections, f"option for {dotted}")
            layers[section, key] = Given(value, "the command line", text=isinstance(value, str))
    return layers


def from_assignments(assignments: Iterable[str], sections: Sections) -> Layers:
    """Settings written `section.key=value`, as `--set` takes them."""
    layers: Layers = {}
    for assignment in assignments:
        dotted, equals, value = assignment.partition("=")
        section, dot, key = dotted.partition(".")
        if not equals or not dot:
            raise ConfigError(f"--set {assignment}: must be written section.key=value, such as worker.threads=2")
        _known_section(section, sections, f"--set {assignment}")
        _known_key(section, key, sections, f"--set {assignment}")
        layers[section, key] = Given(value, f"--set {dotted}", text=True)
    return layers


def build(cls: type[T], section: str, layers: Layers, **fixed: Any) -> T:
    """Make `cls` of the section's values; `fixed` ones come from us. Raises ConfigError naming key and source.

    The dataclass checks ranges itself and raises an error of its own that names `section.key`; the source is added.
    """
    hints = get_type_hints(cls)
    given = {key: g for (name, key), g in layers.items() if name == section}
    values = {key: typed(g, hints[key], f"{section}.{key}") for key, g in given.items()}
    required = [f.name for f in dataclasses.fields(cls) if f.init and _has_no_default(f)]  # type: ignore[arg-type]  # sections are dataclasses
    for key in required:
        if key not in values and key not in fixed:
            variable = f"SHOAL_{section}__{key}".upper()
            raise ConfigError(
                f"{section}.{key} is missing: set it in the file, with {variable} or --set {section}.{key}="
            )
    try:
        return cls(**{**values, **fixed})
    except (AssertionError, TypeError):
        raise
    except Exception as error:
        named = re.match(rf"{section}\.(\w+)", str(error))
        source = f" (from {given[named[1]].source})" if named and named[1] in given else ""
        raise ConfigError(f"{error}{source}") from error


def typed(given: Given, kind: Any, name: str) -> Any:
    """The value as `kind`: str, int, float, bool, tuple[str, ...] or tuple[int, ...].

    Raises ConfigError naming key and source.
    """
    value = given.value
    if given.text:
        value = _parsed(value, kind)
    if kind is float and type(value) is int:
        value = float(value)
    if kind in _LISTS:
        if isinstance(value, (list, tuple)) and all(type(item) is _LISTS[kind] for item in value):
            return tuple(value)
    elif type(value) is kind:
        return value
    assert kind in _WORDS, f"settings of type {kind} are not supported"
    raise ConfigError(f"{name} must be {_WORDS[kind]}, not {given.value!r} (from {given.source})")


_LISTS: dict[Any, type] = {tuple[str, ...]: str, tuple[int, ...]: int}

_WORDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    tuple[str, ...]: "a list of strings",
    tuple[int, ...]: "a list of integers",
}


def _parsed(text: str, kind: Any) -> Any:
    """The words of a variable or option as a value; the text itself when it does not fit."""
    if kind is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)
    if kind in _LISTS:
        return tuple(_parsed(part.strip(), _LISTS[kind]) for part in text.split(",") if part.strip())
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def as_text(value: Any) -> str:
    """The inverse of reading a variable.

    >>> as_text(("a", "b")), as_text(True), as_text(1.5)
    ('a,b', 'true', '1.5')
    """
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _known_section(section: str, sections: Sections, source: str) -> None:
    if section not in sections:
        raise ConfigError(f"{source}: there is no section {section!r}{_suggest(section, sections)}")


def _known_key(section: str, key: str, sections: Sections, source: str) -> None:
    keys = [f.name for f in dataclasses.fields(sections[section])]
    if key not in keys:
        raise ConfigError(f"{source}: {section}.{key} is not a setting{_suggest(key, keys)}")


def _suggest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"

"""Make values.schema.json and README.md of the chart from values.yaml, which documents every key where it is defined.

    python helm/generate.py            write both
    python helm/generate.py --check    fail when one of them is not what would be written

A key's type is its default's; `# @schema {…}` above it adds to that. Sections `config.*` are the dataclasses that the
product reads its settings into, without the keys that the chart itself decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from ranges import Section

from shoal.cluster.config import DECIDED, SECTIONS

HERE = Path(__file__).parent
CHART = HERE / "shoal"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
OURS = {
    "cluster": {"model", "ep_size", "groups", "ray_address", "namespace", "redis_url", "state_dir", "log_format",
                "insecure", "admin_port"},
    "worker": {"model", "worker_id", "group", "host", "port", "device", "threads", "first_port", "metrics_host",
               "metrics_port"},
    "router": {"model_dir", "model_name", "host", "port", "http_host", "http_port", "metrics_host",
               "metrics_port", "redis_url", "workers", "ready_file", "router_id", "drain_seconds", "insecure",
               "redis_wait_seconds"},
    "access": {"required", "keys_file"},
    "audit": {"directory", "key_file", "encryption_key_file"},
}  # fmt: skip
"""Settings that the chart decides, by section."""
NEEDED = {"worker": {"model": "m"}, "router": {"model_dir": "m"}}
"""What a section cannot be made without."""
PATTERNS = {("access", "jwks"): "^(https://[^ ]+|/.+)?$", ("safeguards", "moderation_url"): "^(https?://[^ ]+)?$"}
"""Of settings whose refusal is said in words that are no list."""


@dataclass(frozen=True, slots=True)
class Value:
    """One key of values.yaml. A `branch` has keys of its own and needs no words."""

    path: tuple[str, ...]
    default: Any
    words: str
    schema: dict[str, Any]
    branch: bool


def values_of(text: str) -> Iterator[Value]:
    """Every key in order. Raises ValueError for a leaf without words."""
    lines = text.splitlines()
    defaults = yaml.safe_load(text)

    def walk(node: yaml.MappingNode, defaults: dict[str, Any], path: tuple[str, ...]) -> Iterator[Value]:
        for key, child in node.value:
            here = (*path, key.value)
            words, schema = comment_above(lines, key.start_mark.line)
            default = defaults[key.value]
            branch = isinstance(child, yaml.MappingNode) and not words
            if not branch and not words:
                raise ValueError(f"{'.'.join(here)} (line {key.start_mark.line + 1}) has no `# --` comment")
            yield Value(here, default, words, schema, branch)
            if branch:
                yield from walk(child, default, here)

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "values.yaml is a mapping"
    yield from walk(root, defaults, ())


def comment_above(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    """The words and the schema in the comment right above `line` (counted from 0); empty without one."""
    words: list[str] = []
    schema: dict[str, Any] = {}
    first = line
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    told = False
    for raw in lines[first:line]:
        text = raw.strip().lstrip("#").strip()
        if text.startswith("@schema"):
            schema |= json.loads(text.removeprefix("@schema"))
        elif text.startswith("-- "):
            told, words = True, [text.removeprefix("-- ")]
        elif told:
            words.append(text)
    return " ".join(words), schema


def schema_of(values: list[Value]) -> dict[str, Any]:
    """The whole JSON Schema; a key that is not in values.yaml is refused wherever it stands."""
    root: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    for value in values:
        at = root
        for part in value.path[:-1]:
            at = at["properties"][part]
        if value.branch:
            made: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
        elif "$ref" in value.schema:
            made = dict(value.schema)
        else:
            made = {"type": TYPES[type(value.default)], **value.schema, "description": value.words}
        at["properties"][value.path[-1]] = made
    # Helm merges these into every chart's values.
    root["properties"]["global"] = {"type": "object"}
    definitions = json.loads((HERE / "definitions.json").read_text())
    for section, kind in SECTIONS.items():
        if section == "tls":
            continue  # all of it follows from the values of the chart
        definitions[f"config{section.capitalize()}"] = section_schema(section, kind)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **root, "definitions": definitions}


def section_schema(section: str, kind: type) -> dict[str, Any]:
    """The settings of one section that are left to people."""
    hints = get_type_hints(kind)
    # What is a section of its own is set there.
    left = [f.name for f in dataclasses.fields(kind) if not dataclasses.is_dataclass(hints[f.name])]
    names = [name for name in left if name not in OURS.get(section, set()) and (section, name) not in DECIDED]
    if unknown := OURS.get(section, set()) - set(hints):
        raise ValueError(f"{section} has no settings {sorted(unknown)}")
    asked = Section(section, kind, NEEDED.get(section, {}))
    typed: dict[str, Any] = {}
    for name in names:
        if members := get_args(hints[name]):
            items = {"type": TYPES[members[0]], **asked.items(name, members[0])}
            typed[name] = {"type": "array", "items": items} | ({"minItems": 1} if asked.refusal(name, ()) else {})
        else:
            typed[name] = {"type": TYPES[hints[name]], **asked.range(name, hints[name])}
            if pattern := PATTERNS.get((section, name)):
                typed[name]["pattern"] = pattern
    return {"type": "object", "additionalProperties": False, "properties": typed}


def table_of(values: list[Value]) -> str:
    """The README's table of values."""
    rows = ["| key | default | what it is |", "| --- | --- | --- |"]
    for value in values:
        if not value.branch:
            default = json.dumps(value.default).replace("|", "\\|")
            rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {value.words.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def made() -> dict[Path, str]:
    """What each generated file must hold."""
    values = list(values_of((CHART / "values.yaml").read_text()))
    readme = (CHART / "README.md.tmpl").read_text()
    assert "<!-- values -->" in readme, "README.md.tmpl has no place for the values"
    return {
        CHART / "values.schema.json": json.dumps(schema_of(values), indent=2) + "\n",
        CHART / "README.md": re.sub("<!-- values -->", lambda _: table_of(values), readme),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the chart's schema and README from its values.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when something differs")
    check = parser.parse_args().check
    stale = 0
    for path, text in made().items():
        before = path.read_text() if path.exists() else ""
        if before == text:
            continue
        if not check:
            path.write_text(text)
            print(f"wrote {path}")
            continue
        stale = 1
        sys.stderr.writelines(difflib.unified_diff(before.splitlines(True), text.splitlines(True), str(path), "made"))
    return stale


if __name__ == "__main__":
    sys.exit(main())

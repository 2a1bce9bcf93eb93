"""A custom resource definition as a strict JSON Schema, small enough to keep.

    python -m tests.chart.crd rayclusters.yaml v1 > tests/chart/raycluster.v1.json

Subtrees that occur twice (a pod template does, with all that is in it) become definitions; unknown fields are errors.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml


def strict(node: Any) -> Any:
    """The OpenAPI schema as JSON Schema: what the API server would drop or refuse is refused.

    >>> strict({"type": "object", "properties": {"port": {"x-kubernetes-int-or-string": True}}})["properties"]
    {'port': {'type': ['integer', 'string']}}
    """
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    for noise in ("description", "default", "format", "nullable"):
        if not isinstance(made.get(noise), dict):  # a property may have that name
            made.pop(noise, None)
    if isinstance(node.get("properties"), dict):
        made["properties"] = {name: strict(value) for name, value in node["properties"].items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_object = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if node.get("type") == "object" and "properties" in node and not open_object:
        made["additionalProperties"] = False
    return made


def folded(schema: dict[str, Any], least: int = 120) -> dict[str, Any]:
    """The same schema with repeated subtrees of at least `least` characters as definitions."""
    counts: Counter[str] = Counter()

    def count(node: Any) -> None:
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            if isinstance(child, dict) and len(text := json.dumps(child, sort_keys=True)) >= least:
                counts[text] += 1
                if counts[text] > 1:
                    continue  # what is inside is written once, with the first
            count(child)

    count(schema)
    definitions: dict[str, Any] = {}

    def fold(node: Any, key: str = "") -> Any:
        if isinstance(node, list):
            return [fold(item) for item in node]
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        inner = {name: fold(value, name) for name, value in node.items()}
        if key != "properties" and counts[text] > 1:
            name = hashlib.sha256(text.encode()).hexdigest()[:8]
            definitions[name] = inner
            return {"$ref": f"#/definitions/{name}"}
        return inner

    return {**fold(schema), "definitions": definitions}


def converted(document: dict[str, Any], version: str) -> dict[str, Any]:
    """The strict schema of one version of a custom resource definition; `metadata` stays open."""
    found = next(v for v in document["spec"]["versions"] if v["name"] == version)
    schema = strict(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return folded(schema)


if __name__ == "__main__":
    definition = next(yaml.safe_load_all(Path(sys.argv[1]).read_text()))
    print(json.dumps(converted(definition, sys.argv[2]), sort_keys=True, separators=(",", ":")))

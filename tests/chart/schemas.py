"""Strict schemas: an unknown field or a wrong type in a manifest is an error, in custom resources too."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

HERE = Path(__file__).parent
RAY = ("ray.io/v1", "RayCluster")
KUBERNETES = [f"1.{minor}" for minor in range(27, 38)]


@functools.cache
def _operators() -> dict[str, Any]:
    """Schemas of the fields that we use of other operators' resources, by apiVersion/Kind; ours to write strictly."""
    made: dict[str, Any] = json.loads((HERE / "operators.json").read_text())
    return made


@functools.cache
def _validator(kind: tuple[str, str]) -> Any:
    if kind == RAY:
        schema = json.loads((HERE / "raycluster.v1.json").read_text())
    else:
        schema = {**_operators()["/".join(kind)], "definitions": _operators()["definitions"]}
    return jsonschema.Draft7Validator(schema)


def problems(manifest: dict[str, Any], kubernetes: str) -> Iterator[str]:
    """What is wrong with the shape of one manifest for one version of Kubernetes, one line each."""
    kind = (manifest["apiVersion"], manifest["kind"])
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    if kind == RAY or "/".join(kind) in _operators():
        for error in _validator(kind).iter_errors(manifest):
            yield f"{name}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        return
    validator = _core(kubernetes, *kind)
    if validator is None:
        yield f"{name}: Kubernetes {kubernetes} has no {'/'.join(kind)}"
        return
    for error in validator.iter_errors(manifest):
        yield f"{name}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"


@functools.cache
def _definitions(kubernetes: str) -> tuple[Path, Registry[Any]]:
    """The folder with the strict schemas of a version, and what they refer to."""
    everything = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    folder = next(everything.glob(f"v{kubernetes}.*-local-strict"))
    resource: Resource[Any] = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return folder, resource @ Registry()


@functools.cache
def _core(kubernetes: str, api_version: str, kind: str) -> Any:
    """Validates one of Kubernetes' own kinds; None when the version does not have it."""
    folder, registry = _definitions(kubernetes)
    group, _, version = api_version.rpartition("/")
    name = f"{group.partition('.')[0]}-{version}" if group else version
    path = folder / f"{kind.lower()}-{name}.json"
    if not path.exists():
        return None
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=registry)

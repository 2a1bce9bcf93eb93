"""The chart rendered: by Helm 4 in this process, in milliseconds, and by the oldest Helm that it supports."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

from tests.chart.tools import tool

CHART = Path(__file__).parents[2] / "helm" / "shoal"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
Manifest = dict[str, Any]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RefusedError(Exception):
    """Helm did not render; the message is Helm's."""


@functools.cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Mapping[str, Any] | None = None, release: str = "fish", namespace: str = "sea") -> list[Manifest]:
    """Every manifest, as Helm 4 renders them. Raises RefusedError."""
    try:
        files = _chart().render(dict(values or {}), name=release, namespace=namespace, is_install=True)
    except helm_python.HelmError as error:
        raise RefusedError(str(error)) from error
    return list(parsed("\n---\n".join(text for path, text in sorted(files.items()) if path.endswith(".yaml"))))


def notes(values: Mapping[str, Any] | None = None) -> str:
    """What `helm install` says at its end."""
    files = _chart().render(dict(values or {}), name="fish", namespace="sea", is_install=True)
    return files["shoal/templates/NOTES.txt"]


def render_oldest(
    values: Mapping[str, Any], kubernetes: str, release: str = "fish", namespace: str = "sea"
) -> list[Manifest]:
    """The same by Helm 3.10, for a version of Kubernetes. Raises RefusedError."""
    command = [str(tool("helm")), "template", release, str(CHART), "--namespace", namespace, "--values", "-"]
    command += ["--kube-version", kubernetes]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RefusedError(done.stderr)
    return list(parsed(done.stdout))


def parsed(text: str) -> Iterator[Manifest]:
    """Every document that is not empty."""
    yield from (document for document in yaml.load_all(text, Loader=_Loader) if document)  # safe loader


def example(path: Path) -> dict[str, Any]:
    """Values of one of the ready files."""
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def the(manifests: list[Manifest], kind: str, suffix: str = "") -> Manifest:
    """The one manifest of a kind whose name ends so."""
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, [m["metadata"]["name"] for m in manifests if m["kind"] == kind]
    return found[0]


def kinds(manifests: list[Manifest]) -> set[str]:
    """The kinds among them."""
    return {m["kind"] for m in manifests}


def without_chance(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """The manifests by kind and name, without the password that each rendering makes up."""
    return {(m["kind"], m["metadata"]["name"]): {**m, "data": None} if m["kind"] == "Secret" else m for m in manifests}


def with_autoscaler(ray: Manifest) -> Manifest:
    """A RayCluster with the container that KubeRay puts into the head's pod for Ray's autoscaler."""
    options = ray["spec"].get("autoscalerOptions")
    if options is None:
        return ray
    made = copy.deepcopy(ray)
    containers = made["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    taken = {key: options[key] for key in ("imagePullPolicy", "resources", "securityContext", "volumeMounts")}
    containers.append({"name": "autoscaler", "image": containers[0]["image"], **taken})
    return made


def pod_templates(node: Any, where: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every pod specification found anywhere, inside custom resources too, with its metadata: (where, template)."""
    if isinstance(node, dict):
        if node.get("kind") == "RayCluster":
            node = with_autoscaler(node)
        spec = node.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            yield where, node
        for key, value in node.items():
            yield from pod_templates(value, f"{where}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from pod_templates(value, f"{where}/{index}")

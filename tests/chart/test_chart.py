"""The chart as a whole, with its ready values."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.chart import crd, rules, schemas
from tests.chart.pod_security import violations
from tests.chart.rendering import (
    CHART,
    EXAMPLES,
    example,
    pod_templates,
    render,
    render_oldest,
    without_chance,
)
from tests.chart.tools import tool

ROOT = CHART.parents[1]
EVERYTHING: dict[str, Any] = {
    "ingress": {"enabled": True, "tlsSecret": "host-tls", "className": "nginx"},
    "gateway": {"enabled": True, "parentRefs": [{"name": "front"}], "grpcHostnames": ["grpc.example.com"],
                "httpHostnames": ["api.example.com"]},
    "metrics": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True},
                "dashboards": {"enabled": True}},
    "router": {"autoscaling": {"enabled": True},
               "files": [{"name": "tenants", "kind": "ConfigMap", "path": "/etc/shoal/files/tenants"}]},
    "config": {"autoscale": {"enabled": True},
               "limits": {"enforced": True, "tenants_file": "/etc/shoal/files/tenants/tenants.toml"}},
    "audit": {"enabled": True, "volume": "claim", "claimName": "trails", "keySecret": "trail-keys"},
    "tracing": {"endpoint": "http://collector.monitoring:4317"},
    "networkPolicy": {"clients": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
                      "prometheus": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "model": {"source": "hostPath"},
    "expertParallel": {"size": 4, "groups": 2},
    "worker": {"ranksPerPod": 2},
    "auth": {"required": True, "existingSecret": "api-keys"},
    "tls": {"enabled": True, "clientCertificates": True, "certManager": {"enabled": True, "issuerName": "ca"}},
}  # fmt: skip
SETS = {"defaults": {}, "everything": EVERYTHING} | {path.stem: example(path) for path in EXAMPLES}
every_set = pytest.mark.parametrize("name", SETS)


def test_generated_files_are_current() -> None:
    """README.md and values.schema.json are what values.yaml makes of them."""
    check = [sys.executable, "helm/generate.py", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_helm_4_finds_nothing_to_say() -> None:
    """`helm lint --strict` of Helm 4 has no warning."""
    assert helm_python.helm_sdk_version().lstrip("v").startswith("4.")
    found = helm_python.lint(CHART, strict=True)
    told = [m for m in found["messages"] if "icon" not in str(m)]
    assert [] == told


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_helm_3_10_finds_nothing_to_say(path: Path) -> None:
    """`helm lint --strict` of the oldest Helm has no warning, with any ready values file."""
    command = [str(tool("helm")), "lint", "--strict", "--values", str(path), str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@every_set
def test_both_helms_render_the_same(name: str) -> None:
    """Helm 3.10 and Helm 4 make the same manifests."""
    assert without_chance(render_oldest(SETS[name], "1.30.0")) == without_chance(render(SETS[name]))


@every_set
def test_every_manifest_fits_every_schema(name: str) -> None:
    """Strict schemas of Kubernetes 1.27 to 1.37 and of KubeRay: no unknown field, no wrong type."""
    manifests = render(SETS[name])
    found = {p for version in schemas.KUBERNETES for m in manifests for p in schemas.problems(m, version)}
    assert set() == found


@every_set
def test_all_names_ports_and_sizes_fit_each_other(name: str) -> None:
    """Selectors, ports, references, probes, policies and sizes resolve."""
    outside = rules.named_outside(SETS[name])
    assert [] == list(rules.problems(render(SETS[name]), outside))


@every_set
def test_every_pod_is_restricted(name: str) -> None:
    """No pod template, inside the RayCluster neither, violates the restricted Pod Security Standard."""
    templates = [(m["kind"] + where, t) for m in render(SETS[name]) for where, t in pod_templates(m)]
    assert any(where.startswith("RayCluster") for where, _ in templates)
    assert [] == [f"{where}: {problem}" for where, t in templates for problem in violations(t)]


@every_set
def test_no_pod_has_a_token_of_the_api(name: str) -> None:
    """Nothing here calls the Kubernetes API, so no pod can, and no role exists."""
    manifests = render(SETS[name])
    assert {False} == {t["spec"]["automountServiceAccountToken"] for m in manifests for _, t in pod_templates(m)}
    assert not {m["kind"] for m in manifests} & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


def test_the_checks_find_planted_faults() -> None:
    """Each checker says something about what it is there for."""
    [pod] = [m for m in render() if m["kind"] == "Pod"]
    pod["spec"]["hostNetwork"] = True
    pod["spec"]["containers"][0]["volumeMounts"][0]["name"] = "nowhere"
    pod["spec"]["containers"][0]["imagePullPolicie"] = "Always"
    assert ["hostNetwork is set"] == list(violations(pod))
    assert any("nowhere" in problem for problem in rules.problems([pod]))
    assert any("imagePullPolicie" in problem for problem in schemas.problems(pod, "1.30"))
    [ray] = [m for m in render() if m["kind"] == "RayCluster"]
    ray["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resourcez"] = {}
    assert any("resourcez" in problem for problem in schemas.problems(ray, "1.30"))


def test_a_definition_becomes_a_strict_schema() -> None:
    """Unknown fields are refused, integers or strings both taken, and what occurs twice is kept once."""
    pod = {"type": "object", "properties": {"name": {"type": "string", "description": "words", "maxLength": 63},
           "port": {"x-kubernetes-int-or-string": True}, "description": {"type": "string"}}}  # fmt: skip
    spec = {"type": "object", "properties": {"first": pod, "second": pod}}
    version = {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}
    made = crd.converted({"spec": {"versions": [version]}}, "v1")
    assert 1 == len(made["definitions"])
    [folded] = made["definitions"].values()
    assert folded["additionalProperties"] is False
    assert {"type": ["integer", "string"]} == folded["properties"]["port"]
    assert {"type": "string"} == folded["properties"]["description"]


@pytest.mark.parametrize(("name", "namespace"), [("n", "123"), ("on", "1e3"), ("y", "null")])
def test_names_that_yaml_takes_for_something_else_stay_names(name: str, namespace: str) -> None:
    """`n` is a boolean to YAML, and `1e3` a number."""
    manifests = render(EVERYTHING | {"fullnameOverride": name, "nameOverride": name}, namespace=namespace)
    assert set() == {p for m in manifests for p in schemas.problems(m, "1.30")}
    assert [] == list(rules.problems(manifests, rules.named_outside(EVERYTHING)))
    assert {namespace} == {m["metadata"]["namespace"] for m in manifests if m["kind"] != "PersistentVolume"}


def test_chart_images_and_compose_are_of_one_version() -> None:
    """The product's own: an image without a tag is the chart's appVersion."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (version, version) == (chart["version"], chart["appVersion"])
    for name in ("compose.yaml", "Dockerfile"):
        tags = re.findall(r"shoal-(?:router|worker):([0-9.]+)", (ROOT / "deploy" / name).read_text())
        assert {version} == set(tags), name
